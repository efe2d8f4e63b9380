/* SPDX-License-Identifier: Apache-2.0 */
/* policy_reuse.c - hit densities by class and age, learned from a followed sample. */
#include "storage/policy_reuse.h"

#include <assert.h>
#include <errno.h>
#include <float.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"

#define NONE       0u
#define BUCKETS    (REUSE_SAMPLES_MAX * 2)
#define PER_OCTAVE 4u

/* Densities are computed anew after so many uses and storings of followed entries. */
#define REFRESH_EVENTS 256u
/* Counters halve when a class's youngest age has seen so many. */
#define COUNT_MAX 16384.0f
/* A class's own counters outweigh what is assumed about it when they are worth so many uses. */
#define PRIOR_USES 8.0f
/* With nothing seen: the same chance in every age, so that density falls with age, as by LRU. */
#define PRIOR_CHANCE 0.02f

struct age_list {
    uint32_t first; /* oldest */
    uint32_t last;
};

struct reuse {
    struct reuse_sample *samples; /* 1 .. REUSE_SAMPLES_MAX */
    uint32_t *buckets;
    uint32_t free_first;
    uint32_t count;
    uint32_t now_ticks;
    uint32_t events;
    uint64_t key_limit; /* followed are the keys up to here */
    struct age_list ages[REUSE_AGES];
    float used[REUSE_CLASSES][REUSE_AGES];      /* used again at that age */
    float passed[REUSE_CLASSES][REUSE_AGES];    /* outlived that age without a use */
    uint32_t inside[REUSE_CLASSES][REUSE_AGES]; /* are of that age now */
    float density[REUSE_CLASSES][REUSE_AGES];
};

/* The first tick beyond an age: quarter octaves from a second on. */
static uint32_t age_end(uint32_t age)
{
    static const uint32_t steps[PER_OCTAVE] = {64, 76, 91, 108};
    uint64_t end = (uint64_t)steps[age % PER_OCTAVE] << (age / PER_OCTAVE);
    return end < UINT32_MAX ? (uint32_t)end : UINT32_MAX;
}

uint32_t reuse_age_start(uint32_t age)
{
    return age ? age_end(age - 1) : 0;
}

uint32_t reuse_now(const struct reuse *reuse)
{
    return reuse->now_ticks;
}

uint32_t reuse_age(uint32_t ticks)
{
    uint32_t low = 0;
    uint32_t high = REUSE_AGES - 1;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (ticks < age_end(middle))
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

int reuse_open(struct reuse **out, uint64_t follow)
{
    *out = NULL;
    struct reuse *reuse = larder_alloc_zero(1, sizeof(*reuse));
    if (!reuse)
        return larder_fail(-ENOMEM, "eviction policy: no memory");
    reuse->samples = larder_alloc_zero(REUSE_SAMPLES_MAX + 1, sizeof(*reuse->samples));
    reuse->buckets = larder_alloc_zero(BUCKETS, sizeof(*reuse->buckets));
    if (!reuse->samples || !reuse->buckets) {
        reuse_close(reuse);
        return larder_fail(-ENOMEM, "eviction policy: no memory to follow entries");
    }
    for (uint32_t i = REUSE_SAMPLES_MAX; i > 0; i--) {
        reuse->samples[i].next_hash = reuse->free_first;
        reuse->free_first = i;
    }
    reuse_follow(reuse, follow);
    *out = reuse;
    return 0;
}

void reuse_close(struct reuse *reuse)
{
    if (!reuse)
        return;
    larder_free(reuse->samples);
    larder_free(reuse->buckets);
    larder_free(reuse);
}

size_t reuse_bytes(const struct reuse *reuse)
{
    return sizeof(*reuse) + (REUSE_SAMPLES_MAX + 1) * sizeof(*reuse->samples) +
           BUCKETS * sizeof(*reuse->buckets);
}

/* --- the followed ---------------------------------------------------------------------------- */

static uint32_t *bucket_of(const struct reuse *reuse, uint64_t key)
{
    return &reuse->buckets[key & (BUCKETS - 1)];
}

static uint32_t find(const struct reuse *reuse, uint64_t key)
{
    uint32_t id = *bucket_of(reuse, key);
    while (id != NONE && reuse->samples[id].key != key)
        id = reuse->samples[id].next_hash;
    return id;
}

const struct reuse_sample *reuse_find(const struct reuse *reuse, uint64_t key)
{
    uint32_t id = find(reuse, key);
    return id == NONE ? NULL : &reuse->samples[id];
}

static void age_append(struct reuse *reuse, uint32_t id, uint32_t age)
{
    struct reuse_sample *sample = &reuse->samples[id];
    struct age_list *list = &reuse->ages[age];
    sample->age = (uint8_t)age;
    reuse->inside[sample->class][age]++;
    sample->prev = list->last;
    sample->next = NONE;
    if (list->last == NONE)
        list->first = id;
    else
        reuse->samples[list->last].next = id;
    list->last = id;
}

static void age_remove(struct reuse *reuse, uint32_t id)
{
    const struct reuse_sample *sample = &reuse->samples[id];
    struct age_list *list = &reuse->ages[sample->age];
    reuse->inside[sample->class][sample->age]--;
    if (sample->prev == NONE)
        list->first = sample->next;
    else
        reuse->samples[sample->prev].next = sample->next;
    if (sample->next == NONE)
        list->last = sample->prev;
    else
        reuse->samples[sample->next].prev = sample->prev;
}

static void unfollow(struct reuse *reuse, uint32_t id)
{
    struct reuse_sample *sample = &reuse->samples[id];
    age_remove(reuse, id);
    uint32_t *link = bucket_of(reuse, sample->key);
    while (*link != id)
        link = &reuse->samples[*link].next_hash;
    *link = sample->next_hash;
    sample->next_hash = reuse->free_first;
    reuse->free_first = id;
    reuse->count--;
}

static void unfollow_oldest(struct reuse *reuse)
{
    for (uint32_t age = REUSE_AGES; age > 0; age--) {
        if (reuse->ages[age - 1].first != NONE) {
            unfollow(reuse, reuse->ages[age - 1].first);
            return;
        }
    }
    assert(!"samples are full but none has an age");
}

static void follow(struct reuse *reuse, uint64_t key, uint32_t class, uint32_t turn, uint32_t age)
{
    if (reuse->free_first == NONE)
        unfollow_oldest(reuse);
    uint32_t id = reuse->free_first;
    struct reuse_sample *sample = &reuse->samples[id];
    reuse->free_first = sample->next_hash;
    uint32_t *bucket = bucket_of(reuse, key);
    *sample = (struct reuse_sample){
        .key = key,
        .used_ticks = reuse->now_ticks,
        .next_hash = *bucket,
        .class = (uint8_t) class,
        .turn = (uint8_t)turn,
    };
    *bucket = id;
    age_append(reuse, id, age);
    reuse->count++;
}

void reuse_follow(struct reuse *reuse, uint64_t follow)
{
    reuse->key_limit =
        follow > REUSE_SAMPLES_MAX ? UINT64_MAX / follow * REUSE_SAMPLES_MAX : UINT64_MAX;
    for (uint32_t age = 0; age < REUSE_AGES; age++) {
        uint32_t next;
        for (uint32_t id = reuse->ages[age].first; id != NONE; id = next) {
            next = reuse->samples[id].next;
            if (reuse->samples[id].key > reuse->key_limit)
                unfollow(reuse, id);
        }
    }
}

/* --- what they teach ------------------------------------------------------------------------- */

static void halve(struct reuse *reuse, uint32_t class)
{
    for (uint32_t age = 0; age < REUSE_AGES; age++) {
        reuse->used[class][age] /= 2;
        reuse->passed[class][age] /= 2;
    }
}

/* How many could have been used at that age: those that are in it still count half. */
static float seen_at(const struct reuse *reuse, uint32_t class, uint32_t age)
{
    return reuse->used[class][age] + reuse->passed[class][age] +
           (float)reuse->inside[class][age] / 2;
}

/* Chance of a use in each age, for all classes together; where little was seen, as in the age
 * before. */
static void pooled_chances(const struct reuse *reuse, float *chances)
{
    float before = PRIOR_CHANCE;
    for (uint32_t age = 0; age < REUSE_AGES; age++) {
        float used = 0;
        float seen = 0;
        for (uint32_t class = 0; class < REUSE_CLASSES; class ++) {
            used += reuse->used[class][age];
            seen += seen_at(reuse, class, age);
        }
        chances[age] = (used + before * 4) / (seen + 4);
        before = chances[age];
    }
}

/* The class's own: what was seen of it, on top of the pooled chances times what the class as a
 * whole does more or less often than all. */
static void class_chances(const struct reuse *reuse, uint32_t class, const float *pooled,
                          float *chances)
{
    float used = 0;
    float expected = 0;
    for (uint32_t age = 0; age < REUSE_AGES; age++) {
        used += reuse->used[class][age];
        expected += seen_at(reuse, class, age) * pooled[age];
    }
    float factor = (used + PRIOR_USES) / (expected + PRIOR_USES);
    for (uint32_t age = 0; age < REUSE_AGES; age++) {
        float prior = pooled[age] * factor;
        if (prior > 0.9f)
            prior = 0.9f;
        float seen = seen_at(reuse, class, age);
        float weight = PRIOR_USES / prior;
        chances[age] = (reuse->used[class][age] + PRIOR_USES) / (seen + weight);
    }
}

/* For each age the best over all spans ahead of (chance of a use) / (expected time until the use or
 * the span's end). */
static void class_densities(const float *chances, float *densities)
{
    for (uint32_t from = 0; from < REUSE_AGES; from++) {
        float best = 0;
        float alive = 1;
        float uses = 0;
        float time = 0;
        for (uint32_t age = from; age < REUSE_AGES; age++) {
            float span = (float)(age_end(age) - reuse_age_start(age));
            uses += alive * chances[age];
            time += alive * span * (1 - chances[age] / 2);
            alive *= 1 - chances[age];
            if (uses > best * time)
                best = uses / time;
        }
        densities[from] = best;
    }
}

static void refresh(struct reuse *reuse)
{
    float pooled[REUSE_AGES];
    float chances[REUSE_AGES];
    pooled_chances(reuse, pooled);
    for (uint32_t class = 0; class < REUSE_CLASSES; class ++) {
        if (reuse->used[class][0] + reuse->passed[class][0] > COUNT_MAX)
            halve(reuse, class);
        class_chances(reuse, class, pooled, chances);
        class_densities(chances, reuse->density[class]);
    }
}

void reuse_advance(struct reuse *reuse, uint32_t now_ticks)
{
    assert(now_ticks >= reuse->now_ticks);
    reuse->now_ticks = now_ticks;
    for (uint32_t age = REUSE_AGES - 1; age > 0; age--) {
        struct age_list *list = &reuse->ages[age - 1];
        uint32_t end = age_end(age - 1);
        while (list->first != NONE && now_ticks - reuse->samples[list->first].used_ticks >= end) {
            uint32_t id = list->first;
            age_remove(reuse, id);
            uint32_t to = reuse_age(now_ticks - reuse->samples[id].used_ticks);
            for (uint32_t passed = age - 1; passed < to; passed++)
                reuse->passed[reuse->samples[id].class][passed] += 1;
            age_append(reuse, id, to);
        }
    }
}

void reuse_rewind(struct reuse *reuse, uint32_t ticks)
{
    assert(ticks <= reuse->now_ticks);
    reuse->now_ticks -= ticks;
    for (uint32_t age = 0; age < REUSE_AGES; age++) {
        for (uint32_t id = reuse->ages[age].first; id != NONE; id = reuse->samples[id].next) {
            struct reuse_sample *sample = &reuse->samples[id];
            sample->used_ticks = sample->used_ticks > ticks ? sample->used_ticks - ticks : 0;
        }
    }
}

void reuse_use(struct reuse *reuse, uint64_t key, uint32_t class, uint32_t turn)
{
    if (key > reuse->key_limit)
        return;
    uint32_t id = find(reuse, key);
    if (id != NONE) {
        const struct reuse_sample *sample = &reuse->samples[id];
        reuse->used[sample->class][sample->age] += 1;
        unfollow(reuse, id);
    }
    follow(reuse, key, class, turn, 0);
    if (++reuse->events % REFRESH_EVENTS == 0 || reuse->events == 1)
        refresh(reuse);
}

float reuse_density(const struct reuse *reuse, uint32_t class, uint32_t age)
{
    return reuse->density[class][age];
}

/* --- across a restart ------------------------------------------------------------------------ */

struct state_head {
    uint32_t class_count;  /* 00-03 */
    uint32_t age_count;    /* 04-07 */
    uint32_t now_ticks;    /* 08-11 */
    uint32_t sample_count; /* 12-15 */
};
static_assert(sizeof(struct state_head) == 16, "saved size");

struct state_sample {
    uint64_t key;        /* 00-07 */
    uint32_t used_ticks; /* 08-11  not before the sample's in front of it */
    uint8_t class;       /* 12 */
    uint8_t turn;        /* 13 */
    uint8_t reserved[2]; /* 14-15  zero */
};
static_assert(sizeof(struct state_sample) == REUSE_SAMPLE_BYTES, "saved size");

#define COUNTERS_BYTES (REUSE_CLASSES * REUSE_AGES * sizeof(float))
#define FIXED_BYTES    (sizeof(struct state_head) + 2 * COUNTERS_BYTES)
static_assert(FIXED_BYTES + REUSE_SAMPLES_MAX * REUSE_SAMPLE_BYTES == REUSE_STATE_BYTES_MAX,
              "saved size");

size_t reuse_save(const struct reuse *reuse, uint8_t *out)
{
    const struct state_head head = {REUSE_CLASSES, REUSE_AGES, reuse->now_ticks, reuse->count};
    memcpy(out, &head, sizeof(head));
    memcpy(out + sizeof(head), reuse->used, COUNTERS_BYTES);
    memcpy(out + sizeof(head) + COUNTERS_BYTES, reuse->passed, COUNTERS_BYTES);
    uint8_t *at = out + FIXED_BYTES;
    for (uint32_t age = REUSE_AGES; age > 0; age--) {
        for (uint32_t id = reuse->ages[age - 1].first; id != NONE; id = reuse->samples[id].next) {
            const struct reuse_sample *sample = &reuse->samples[id];
            const struct state_sample saved = {
                .key = sample->key,
                .used_ticks = sample->used_ticks,
                .class = sample->class,
                .turn = sample->turn,
            };
            memcpy(at, &saved, sizeof(saved));
            at += sizeof(saved);
        }
    }
    return (size_t)(at - out);
}

static bool samples_are_sound(const struct state_head *head, const uint8_t *at)
{
    uint32_t oldest = 0;
    for (uint32_t i = 0; i < head->sample_count; i++) {
        struct state_sample saved;
        memcpy(&saved, at + i * sizeof(saved), sizeof(saved));
        if (saved.used_ticks < oldest || saved.used_ticks > head->now_ticks ||
            saved.class >= REUSE_CLASSES)
            return false;
        oldest = saved.used_ticks;
    }
    return true;
}

static bool counters_are_sound(const float *counters)
{
    for (uint32_t i = 0; i < REUSE_CLASSES * REUSE_AGES; i++) {
        if (!(counters[i] >= 0 && counters[i] <= FLT_MAX / 256)) /* not a number, too */
            return false;
    }
    return true;
}

static bool load_counters(struct reuse *reuse, const uint8_t *in, size_t bytes,
                          struct state_head *head)
{
    if (bytes < FIXED_BYTES)
        return false;
    memcpy(head, in, sizeof(*head));
    if (head->class_count != REUSE_CLASSES || head->age_count != REUSE_AGES ||
        head->sample_count > REUSE_SAMPLES_MAX ||
        bytes != FIXED_BYTES + head->sample_count * sizeof(struct state_sample) ||
        !samples_are_sound(head, in + FIXED_BYTES))
        return false;
    memcpy(reuse->used, in + sizeof(*head), COUNTERS_BYTES);
    memcpy(reuse->passed, in + sizeof(*head) + COUNTERS_BYTES, COUNTERS_BYTES);
    return counters_are_sound(reuse->used[0]) && counters_are_sound(reuse->passed[0]);
}

int reuse_load(struct reuse *reuse, const uint8_t *in, size_t bytes)
{
    assert(reuse->count == 0);
    struct state_head head;
    if (!load_counters(reuse, in, bytes, &head)) {
        memset(reuse->used, 0, sizeof(reuse->used));
        memset(reuse->passed, 0, sizeof(reuse->passed));
        return larder_fail(LARDER_ECORRUPT, "eviction policy: the saved state is not one of this "
                                            "release; it starts to learn anew");
    }
    for (uint32_t i = 0; i < head.sample_count; i++) {
        struct state_sample saved;
        memcpy(&saved, in + FIXED_BYTES + i * sizeof(saved), sizeof(saved));
        if (saved.key > reuse->key_limit || find(reuse, saved.key) != NONE)
            continue;
        reuse->now_ticks = saved.used_ticks;
        /* The ages it passed are in the counters already. */
        follow(reuse, saved.key, saved.class, saved.turn,
               reuse_age(head.now_ticks - saved.used_ticks));
    }
    reuse->now_ticks = head.now_ticks;
    refresh(reuse);
    return 0;
}
