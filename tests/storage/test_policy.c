/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: every policy keeps chains whole, names only victims that may go, chooses the same ones in
 * every run and across a restart, and allocates nothing once it has seen the ids.
 * Method: conversations, shared prefixes and scans drawn from a seed run through each policy beside
 * a plain model of the tier, which checks every victim; the learned policy must also tell apart
 * what any sensible one tells apart. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "storage/policy.h"

#define ID_MAX    4000u
#define CAPACITY  400u
#define SCAN_FROM 3600u /* in some tests, ids beyond name something else every time */

/* The tier, plainly. */
struct model {
    struct larder_policy *policy;
    uint32_t parent[ID_MAX + 1];
    uint32_t children[ID_MAX + 1];
    bool present[ID_MAX + 1];
    uint32_t leased_from; /* ids of the request */
    uint32_t leased_to;
    uint32_t count;
    uint64_t now_ms;
    uint64_t random;
    uint64_t scans;   /* prompts that came once */
    uint64_t victims; /* a digest of all of them in order */
    struct larder_policy_entry entries[ID_MAX + 1];
    struct larder_policy_node nodes[ID_MAX + 1];
    uint32_t child_counts[ID_MAX + 1]; /* the policy's own count of them */
};

static struct model model;

static uint64_t draw(uint64_t limit)
{
    model.random ^= model.random << 13;
    model.random ^= model.random >> 7;
    model.random ^= model.random << 17;
    return model.random % limit;
}

static struct larder_policy_node *node_of(void *context, uint32_t id)
{
    (void)context;
    return &model.nodes[id];
}

static uint32_t *child_count_of(void *context, uint32_t id)
{
    (void)context;
    return &model.child_counts[id];
}

static void describe(void *context, uint32_t id, struct larder_policy_entry *out)
{
    (void)context;
    *out = model.entries[id];
}

static int open_policy(struct larder_policy **out, const char *name, uint32_t capacity,
                       uint32_t group_max)
{
    const struct larder_policy_options options = {
        .name = name,
        .capacity_entries = capacity,
        .group_max = group_max,
        .home = {.node = node_of, .child_count = child_count_of, .describe = describe},
    };
    return larder_policy_open(out, &options);
}

static void begin(const char *name, uint32_t capacity)
{
    memset(&model, 0, sizeof(model));
    model.random = 88172645463325252ull;
    model.now_ms = 1700000000000ull;
    ck_assert_int_eq(open_policy(&model.policy, name, capacity, 1), 0);
}

static void finish(void)
{
    larder_policy_close(model.policy);
    model.policy = NULL;
}

static bool may_go(void *context, uint32_t id)
{
    (void)context;
    return id < model.leased_from || id >= model.leased_to;
}

static void take_away(uint32_t id, bool evicted)
{
    ck_assert(model.present[id]);
    ck_assert_msg(model.children[id] == 0, "%u leaves a hole", id);
    model.present[id] = false;
    model.count--;
    if (model.parent[id])
        model.children[model.parent[id]]--;
    if (evicted)
        larder_policy_evict(model.policy, id);
    else
        larder_policy_remove(model.policy, id);
    ck_assert(!larder_policy_has(model.policy, id));
    ck_assert_uint_eq(larder_policy_count(model.policy), model.count);
}

static void make_entry(uint32_t id, uint32_t parent, uint32_t depth, uint32_t token_count)
{
    model.entries[id] = (struct larder_policy_entry){
        .parent = parent,
        .key = (id + (id > SCAN_FROM ? model.scans << 32 : 0)) * 0x9E3779B97F4A7C15ull,
        .depth = depth,
        .token_count = token_count,
        .bytes = 1000,
        .cost = (float)(token_count + depth),
    };
}

static void make_room(uint32_t capacity)
{
    while (model.count >= capacity) {
        uint32_t id = larder_policy_victim(model.policy, 0, may_go, NULL);
        ck_assert_uint_ne(id, LARDER_POLICY_NONE);
        ck_assert(may_go(NULL, id));
        model.victims = (model.victims ^ id) * 0x100000001B3ull;
        take_away(id, true);
    }
}

/* One request for blocks first .. first + count - 1, a chain; the last one is a short tail. */
static void request(uint32_t first, uint32_t count, uint32_t capacity)
{
    model.leased_from = first;
    model.leased_to = first + count;
    ck_assert_int_eq(larder_policy_begin(model.policy, 0, model.now_ms), 0);
    for (uint32_t id = first + count; id > first; id--) {
        if (model.present[id - 1])
            larder_policy_use(model.policy, id - 1);
    }
    for (uint32_t id = first; id < first + count; id++) {
        if (model.present[id])
            continue;
        make_room(capacity);
        uint32_t parent = id > first ? id - 1 : 0;
        make_entry(id, parent, id - first, id + 1 == first + count ? 100 : 256);
        larder_policy_insert(model.policy, id);
        model.present[id] = true;
        model.parent[id] = parent;
        model.count++;
        if (parent)
            model.children[parent]++;
    }
    larder_policy_end(model.policy);
    model.leased_to = model.leased_from;
}

/* Forty ids a conversation, of which a request uses the first few. */
static void random_requests(uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        model.now_ms += draw(3000);
        uint32_t conversation = (uint32_t)(draw(2) ? draw(10) : draw(ID_MAX / 40 - 1));
        request(conversation * 40 + 1, (uint32_t)draw(39) + 1, CAPACITY);
        ck_assert_uint_le(model.count, CAPACITY);
        uint32_t id = (uint32_t)draw(ID_MAX) + 1;
        if (draw(10) == 0 && model.present[id] && model.children[id] == 0)
            take_away(id, false);
    }
}

START_TEST(chains_stay_whole)
{
    begin(larder_policy_name((uint32_t)_i), CAPACITY);
    random_requests(5000);
    /* All of it can be given up. */
    make_room(1);
    uint32_t last = larder_policy_victim(model.policy, 0, NULL, NULL);
    ck_assert_uint_eq(model.count, 0);
    ck_assert_uint_eq(last, LARDER_POLICY_NONE);
    finish();
}
END_TEST

START_TEST(the_same_calls_give_the_same_victims)
{
    uint64_t victims[2];
    for (int run = 0; run < 2; run++) {
        begin(larder_policy_name((uint32_t)_i), CAPACITY);
        random_requests(2000);
        victims[run] = model.victims;
        finish();
    }
    ck_assert_uint_eq(victims[0], victims[1]);
    ck_assert_uint_ne(victims[0], 0);
}
END_TEST

START_TEST(nothing_is_allocated_in_the_steady_state)
{
    begin(larder_policy_name((uint32_t)_i), CAPACITY);
    request(ID_MAX - 40, 40, CAPACITY);
    random_requests(500);
    uint64_t allocations = larder_mem_count();
    size_t bytes = larder_policy_bytes(model.policy);
    random_requests(3000);
    ck_assert_uint_eq(larder_mem_count(), allocations);
    ck_assert_uint_eq(larder_policy_bytes(model.policy), bytes);
    finish();
}
END_TEST

START_TEST(without_memory_nothing_breaks)
{
    for (uint64_t n = 1; n < 200; n++) {
        memset(&model, 0, sizeof(model));
        make_entry(1, 0, 0, 256);
        struct larder_policy *policy;
        larder_mem_fail_at(n);
        int err = open_policy(&policy, larder_policy_name((uint32_t)_i), 10, 1);
        if (err == 0) {
            err = larder_policy_begin(policy, 0, 0);
            if (err == 0) {
                larder_policy_insert(policy, 1);
                larder_policy_end(policy);
            }
            ck_assert(larder_policy_has(policy, 1) == (err == 0));
        }
        larder_mem_fail_at(0);
        larder_policy_close(policy);
        if (err == 0)
            return;
        ck_assert_int_eq(err, -ENOMEM);
    }
    ck_abort_msg("it never succeeds");
}
END_TEST

START_TEST(what_is_wrong_is_refused)
{
    struct larder_policy *policy;
    ck_assert_int_eq(open_policy(&policy, "none", 1, 1), -EINVAL);
    ck_assert_ptr_null(policy);
    ck_assert_int_eq(open_policy(&policy, NULL, 0, 1), -EINVAL);
    ck_assert_int_eq(open_policy(&policy, "arc", 1, 2), -EINVAL);
    ck_assert(!larder_policy_knows_groups("arc"));
    ck_assert(!larder_policy_knows_groups("none"));
    ck_assert(larder_policy_knows_groups(NULL));
}
END_TEST

/* --- across a restart ------------------------------------------------------------------------ */

static void restart(const char *name)
{
    size_t bytes_max = larder_policy_state_bytes_max(model.policy);
    uint8_t *state = larder_alloc(bytes_max + 1);
    uint64_t *recalled = larder_alloc_zero(ID_MAX + 1, sizeof(*recalled));
    ck_assert(state && recalled);
    size_t bytes = larder_policy_save(model.policy, state);
    ck_assert_uint_le(bytes, bytes_max);
    for (uint32_t id = 1; id <= ID_MAX; id++) {
        if (model.present[id])
            recalled[id] = larder_policy_recall(model.policy, id);
    }
    larder_policy_close(model.policy);
    memset(model.nodes, 0, sizeof(model.nodes));
    memset(model.child_counts, 0, sizeof(model.child_counts));
    ck_assert_int_eq(open_policy(&model.policy, name, CAPACITY, 1), 0);
    if (bytes > 0) {
        /* Damage is met with a code, and leaves it as new. */
        ck_assert_int_eq(larder_policy_load(model.policy, state, bytes - 1, model.now_ms),
                         LARDER_ECORRUPT);
        ck_assert_int_eq(larder_policy_load(model.policy, state, 3, model.now_ms), LARDER_ECORRUPT);
    }
    ck_assert_msg(larder_policy_load(model.policy, state, bytes, model.now_ms) == 0, "%s",
                  larder_error_message());
    for (uint32_t id = 1; id <= ID_MAX; id++) {
        if (!model.present[id])
            continue;
        ck_assert_int_eq(larder_policy_restore(model.policy, id, recalled[id], model.now_ms), 0);
        ck_assert_uint_eq(larder_policy_recall(model.policy, id), recalled[id]);
    }
    ck_assert_uint_eq(larder_policy_count(model.policy), model.count);
    larder_free(state);
    larder_free(recalled);
}

START_TEST(it_goes_on_after_a_restart)
{
    const char *name = larder_policy_name((uint32_t)_i);
    begin(name, CAPACITY);
    random_requests(2000);
    restart(name);
    random_requests(2000);
    restart(name);
    restart(name);
    random_requests(200);
    finish();
}
END_TEST

/* A start that is over within the tick of the last use of all; nothing may stay behind for good. */
START_TEST(a_request_right_after_a_restart)
{
    const char *name = larder_policy_name((uint32_t)_i);
    begin(name, CAPACITY);
    random_requests(100);
    request(1, 40, CAPACITY);
    for (uint32_t again = 0; again < 3; again++) {
        restart(name);
        request(401 + again * 40, 3, CAPACITY);
    }
    make_room(1);
    ck_assert_uint_eq(model.count, 0);
    finish();
}
END_TEST

START_TEST(flipped_state_never_harms)
{
    begin("value", CAPACITY);
    random_requests(300);
    size_t bytes_max = larder_policy_state_bytes_max(model.policy);
    uint8_t *state = larder_alloc(bytes_max);
    ck_assert_ptr_nonnull(state);
    size_t bytes = larder_policy_save(model.policy, state);
    finish();
    for (uint32_t round = 0; round < 60; round++) {
        begin("value", CAPACITY);
        model.random += round;
        size_t at = draw(round % 2 ? bytes : 64);
        uint8_t before = state[at];
        state[at] ^= (uint8_t)(1 + draw(255));
        int err = larder_policy_load(model.policy, state, bytes, model.now_ms);
        ck_assert(err == 0 || err == LARDER_ECORRUPT);
        random_requests(60);
        finish();
        state[at] = before;
    }
    larder_free(state);
}
END_TEST

/* --- what the default learns ----------------------------------------------------------------- */

static uint32_t stored_of(uint32_t first, uint32_t count)
{
    uint32_t found = 0;
    for (uint32_t id = first; id < first + count; id++)
        found += model.present[id];
    return found;
}

/* A prompt that never returns. */
static void scan(void)
{
    model.scans++;
    uint32_t first = SCAN_FROM + 1 + (uint32_t)(model.scans % 10) * 40;
    for (uint32_t id = first + 40; id > first; id--) {
        if (model.present[id - 1])
            take_away(id - 1, false);
    }
    request(first, 40, CAPACITY);
}

START_TEST(a_scan_does_not_wash_out_conversations)
{
    /* Ten conversations return every ten seconds; between them come prompts that never do. */
    begin("value", CAPACITY);
    uint32_t hits = 0;
    uint32_t refs = 0;
    for (uint32_t round = 0; round < 200; round++) {
        for (uint32_t conversation = 0; conversation < 10; conversation++) {
            model.now_ms += 1000;
            if (round >= 100) {
                hits += stored_of(conversation * 40 + 1, 20);
                refs += 20;
            }
            request(conversation * 40 + 1, 20, CAPACITY);
            scan();
            scan();
        }
    }
    /* By recency nothing would be left after ten scans of forty. */
    ck_assert_msg(hits * 100 > refs * 80, "%u of %u blocks were still there", hits, refs);
    finish();
}
END_TEST

START_TEST(a_full_tier_admits_what_returns_and_no_scans)
{
    begin("value", CAPACITY);
    for (uint32_t round = 0; round < 200; round++) {
        for (uint32_t conversation = 0; conversation < 10; conversation++) {
            model.now_ms += 1000;
            request(conversation * 40 + 1, 40, CAPACITY);
            if (round < 199)
                scan();
        }
    }
    /* Nothing is left but conversations; the end of one of them is lost. */
    ck_assert_uint_ge(stored_of(1, 400), CAPACITY - 40);
    for (uint32_t id = ID_MAX; id > SCAN_FROM; id--) {
        if (model.present[id])
            take_away(id, false);
    }
    model.now_ms += 1000;
    if (model.present[40])
        take_away(40, false);
    take_away(39, false);
    request(41, 40, CAPACITY);
    ck_assert_int_eq(larder_policy_begin(model.policy, 0, model.now_ms), 0);
    make_entry(39, 38, 38, 256);
    ck_assert(larder_policy_admits(model.policy, 39, true));
    make_entry(SCAN_FROM - 1, SCAN_FROM - 2, 38, 256);
    ck_assert(!larder_policy_admits(model.policy, SCAN_FROM - 1, false));
    larder_policy_end(model.policy);
    uint32_t admitted = 0;
    for (uint32_t i = 0; i < 100; i++) {
        model.now_ms += 5;
        model.scans++;
        ck_assert_int_eq(larder_policy_begin(model.policy, 0, model.now_ms), 0);
        make_entry(SCAN_FROM + 399, 0, 0, 256);
        admitted += larder_policy_admits(model.policy, SCAN_FROM + 399, true);
        larder_policy_end(model.policy);
    }
    ck_assert_msg(admitted < 20, "%u of 100 blocks of scans were admitted", admitted);
    finish();
}
END_TEST

int main(void)
{
    int policies = 0;
    while (larder_policy_name((uint32_t)policies))
        policies++;
    Suite *suite = suite_create("policy");
    TCase *every = tcase_create("every policy");
    tcase_set_timeout(every, 120);
    tcase_add_loop_test(every, chains_stay_whole, 0, policies);
    tcase_add_loop_test(every, the_same_calls_give_the_same_victims, 0, policies);
    tcase_add_loop_test(every, nothing_is_allocated_in_the_steady_state, 0, policies);
    tcase_add_loop_test(every, without_memory_nothing_breaks, 0, policies);
    tcase_add_test(every, what_is_wrong_is_refused);
    tcase_add_loop_test(every, it_goes_on_after_a_restart, 0, policies);
    tcase_add_loop_test(every, a_request_right_after_a_restart, 0, policies);
    suite_add_tcase(suite, every);
    TCase *learned = tcase_create("value");
    tcase_set_timeout(learned, 120);
    tcase_add_test(learned, flipped_state_never_harms);
    tcase_add_test(learned, a_scan_does_not_wash_out_conversations);
    tcase_add_test(learned, a_full_tier_admits_what_returns_and_no_scans);
    suite_add_tcase(suite, learned);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
