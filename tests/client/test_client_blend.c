/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   a blend through larderd and its worker gives the KV that its method promises, says of
 *         each token where that came from, and survives what may happen meanwhile: a worker that
 *         is killed or stuck, a client that dies, others that want the same worker.
 * Method: a real larderd with a worker for the small model; the same model here says what a plain
 *         prefill gives, and kernels/rope.h what a moved chunk is. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "client/cache_layout.h"
#include "kernels/rope.h"
#include "tests/client/blend_world.h"
#include "tests/daemon/peer.h"

#define K_AND_V 3u
#define V_ONLY  2u

static struct world world;
static struct world_prompt prompt;
static struct larder_blended blended;
static struct larder_kv_cache *got;
static struct answer answer;

static const uint32_t firsts[] = {100, 1000, 3000};
static const uint32_t counts[] = {50, 71, 40};

static void sleep_ms(int ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

static void begin_with(const char *config)
{
    world_open(&world, config);
    world_prompt(&world, &prompt, firsts, counts, 23);
    ck_assert_int_eq(larder_llama_cache_open(world.llama, &got, WORLD_TOKENS_MAX, 0), 0);
}

static void begin(void)
{
    begin_with("");
}

static void end(void)
{
    larder_kv_cache_close(got);
    world_close(&world);
}

static int blend_now(void)
{
    const struct larder_layout layout = larder_cache_layout(got);
    return larder_blend(world.model, &blended, &prompt.request, &layout);
}

static void blend(const char *method)
{
    prompt.request.method = method;
    int err = blend_now();
    ck_assert_msg(err == 0, "%s", larder_last_error());
    ck_assert_uint_eq(blended.tokens, prompt.count);
}

/* The result is a plain prefill's, logits included. */
static void assert_prefilled(void)
{
    float logits[272];
    ck_assert_uint_eq(world.desc.vocab, 272);
    struct larder_kv_cache *plain = world_prefill(&world, prompt.tokens, prompt.count, logits);
    ck_assert(world_same_rows(got, plain, K_AND_V, 0, prompt.count));
    ck_assert_int_eq(memcmp(logits, blended.logits, sizeof(logits)), 0);
    larder_kv_cache_close(plain);
}

/* Rows of piece `index` are those of its own chain, with K moved. */
static void assert_moved(uint32_t index)
{
    uint32_t chunk[WORLD_TOKENS_MAX] = {WORLD_BOS};
    const struct larder_prompt *piece = &prompt.pieces[index];
    const uint32_t count = (uint32_t)piece->token_count;
    const uint32_t first = prompt.firsts[index];
    memcpy(chunk + 1, piece->tokens, count * sizeof(*chunk));
    struct larder_kv_cache *alone = world_prefill(&world, chunk, count + 1, NULL);
    struct larder_rope_table *table;
    ck_assert_int_eq(larder_rope_table_open(&table, &world.desc.rope, world.desc.k_dims), 0);
    ck_assert_int_eq(larder_rope_table_grow(table, WORLD_TOKENS_MAX), 0);
    uint32_t from[WORLD_TOKENS_MAX], to[WORLD_TOKENS_MAX];
    for (uint32_t i = 0; i < count; i++) {
        from[i] = 1 + i;
        to[i] = first + i;
    }
    for (uint32_t layer = 0; layer < alone->layers; layer++) {
        const struct larder_tensor rows = larder_kv_cache_tensor(alone, layer, LARDER_K, 1, count);
        larder_rope_move(table, &(struct larder_rope_move){rows, rows, from, to});
        const struct larder_tensor now = larder_kv_cache_tensor(got, layer, LARDER_K, first, count);
        ck_assert_int_eq(memcmp(rows.data, now.data, count * alone->k_token_bytes), 0);
        const struct larder_tensor v = larder_kv_cache_tensor(alone, layer, LARDER_V, 1, count);
        const struct larder_tensor v_now =
            larder_kv_cache_tensor(got, layer, LARDER_V, first, count);
        ck_assert_int_eq(memcmp(v.data, v_now.data, count * alone->v_token_bytes), 0);
    }
    larder_rope_table_close(table);
    larder_kv_cache_close(alone);
}

static void expect_span(const struct larder_blend_span *span, uint32_t source, uint64_t first,
                        uint64_t count, uint64_t stored_first)
{
    ck_assert_uint_eq(span->source, source);
    ck_assert_uint_eq(span->first, first);
    ck_assert_uint_eq(span->count, count);
    ck_assert_uint_eq(span->stored_first, stored_first);
}

/* --- what comes out -------------------------------------------------------------------------- */

START_TEST(full_is_a_prefill)
{
    begin();
    world_store_pieces(&world, &prompt);
    blend("full");
    assert_prefilled();
    ck_assert_uint_eq(blended.quality, LARDER_QUALITY_EXACT);
    ck_assert_uint_eq(blended.replanned, 0);
    ck_assert_uint_eq(blended.span_count, 4);
    expect_span(&blended.spans[0], LARDER_BLEND_PREFIX, 0, 51, 0);
    expect_span(&blended.spans[1], LARDER_BLEND_MOVED, 51, 71, 1);
    expect_span(&blended.spans[2], LARDER_BLEND_MOVED, 122, 40, 1);
    expect_span(&blended.spans[3], LARDER_BLEND_SUFFIX, 162, 23, 162);
    for (uint32_t i = 0; i < prompt.count; i++)
        ck_assert_uint_eq(blended.recomputed[i],
                          i < 51 ? LARDER_BLEND_STORED : LARDER_BLEND_COMPUTED);
    ck_assert_uint_eq(blended.rows, 6 * (prompt.count - 51));
    larder_blended_free(&blended);
    end();
}
END_TEST

START_TEST(none_is_moved)
{
    begin();
    world_store_pieces(&world, &prompt);
    blend("none");
    assert_moved(1);
    assert_moved(2);
    struct larder_kv_cache *plain = world_prefill(&world, prompt.tokens, prompt.count, NULL);
    ck_assert(world_same_rows(got, plain, K_AND_V, 0, 51));
    ck_assert(!world_same_rows(got, plain, V_ONLY, 51, 162));
    larder_kv_cache_close(plain);
    ck_assert_uint_eq(blended.quality, LARDER_QUALITY_BLENDED);
    ck_assert_double_eq(blended.share, 0);
    ck_assert_uint_eq(blended.rows, 6 * 23);
    for (uint32_t i = 0; i < prompt.count; i++)
        ck_assert_uint_eq(blended.recomputed[i],
                          i < 162 ? LARDER_BLEND_STORED : LARDER_BLEND_COMPUTED);
    larder_blended_free(&blended);
    end();
}
END_TEST

/* Nothing stored, and only the first blocks of a chunk. */
START_TEST(what_is_missing_is_computed)
{
    begin();
    blend("none");
    assert_prefilled();
    ck_assert_uint_eq(blended.quality, LARDER_QUALITY_EXACT);
    larder_blended_free(&blended);

    uint32_t chunk[WORLD_TOKENS_MAX];
    world_store(&world, chunk, world_tokens(&world, chunk, firsts[1], 31, true));
    blend("none");
    ck_assert_uint_eq(blended.span_count, 5);
    expect_span(&blended.spans[0], LARDER_BLEND_MISSING, 0, 51, 0);
    expect_span(&blended.spans[1], LARDER_BLEND_MOVED, 51, 31, 1);
    expect_span(&blended.spans[2], LARDER_BLEND_MISSING, 82, 40, 82);
    ck_assert_uint_eq(blended.quality, LARDER_QUALITY_BLENDED);
    larder_blended_free(&blended);
    end();
}
END_TEST

START_TEST(a_method_recomputes_some)
{
    begin();
    world_store_pieces(&world, &prompt);
    blend("link k=4");
    uint32_t computed = 0;
    for (uint32_t i = 0; i < 162; i++)
        computed += blended.recomputed[i] == LARDER_BLEND_COMPUTED;
    ck_assert_uint_eq(computed, 2 * 4);
    ck_assert_uint_eq(blended.quality, LARDER_QUALITY_BLENDED);
    larder_blended_free(&blended);
    blend("cacheblend r=.15");
    ck_assert(blended.share > 0);
    ck_assert(blended.share < 1);
    larder_blended_free(&blended);
    end();
}
END_TEST

/* Staging that holds a part of a layer only; a layout that is not the worker's; tokens that the
 * engine has already. */
START_TEST(parts_and_layouts)
{
    begin_with("staging_bytes_max = 32K\nstaging_bytes_all = 4M\n");
    blend("full");
    assert_prefilled();
    larder_blended_free(&blended);

    const uint64_t bytes = prompt.count * 6 * 2 * 2 * 64 * 2ull;
    uint8_t *memory = malloc(bytes);
    memset(memory, 0xee, bytes);
    struct larder_layout layout;
    ck_assert_int_eq(larder_layout_plain(&layout, &world.desc, memory, prompt.count), 0);
    layout.token_first = 30;
    ck_assert_int_eq(larder_blend(world.model, &blended, &prompt.request, &layout), 0);
    for (uint32_t layer = 0; layer < 6; layer++) {
        for (uint32_t kv = 0; kv < 2; kv++) {
            const uint8_t *rows = memory + (layer * 2 + kv) * prompt.count * 256ull;
            for (uint32_t i = 0; i < 30 * 256; i++)
                ck_assert_uint_eq(rows[i], 0xee);
            ck_assert_int_eq(memcmp(rows + 30 * 256,
                                    (char *)larder_kv_cache_rows(got, layer, kv) + 30 * 256,
                                    (prompt.count - 30) * 256ull),
                             0);
        }
    }
    larder_blended_free(&blended);
    free(memory);
    end();
}
END_TEST

static uint64_t stored_at(enum larder_quality worst)
{
    const struct larder_prompt whole = {.tokens = prompt.tokens, .token_count = prompt.count};
    struct larder_lookup_result found;
    ck_assert_int_eq(larder_lookup(world.model, &found, &whole, worst), 0);
    return found.tokens;
}

START_TEST(kept_at_its_quality)
{
    begin();
    world_store_pieces(&world, &prompt);
    blend("none");
    larder_blended_free(&blended);
    ck_assert_uint_eq(stored_at(LARDER_QUALITY_BLENDED), 51);

    prompt.request.keep = LARDER_KEEP_DURABLE;
    blend("none");
    ck_assert_uint_eq(blended.kept_tokens, prompt.count);
    ck_assert_int_eq(blended.keep_error, 0);
    larder_blended_free(&blended);
    ck_assert_uint_eq(stored_at(LARDER_QUALITY_BLENDED), prompt.count);
    ck_assert_uint_le(stored_at(LARDER_QUALITY_LOSSY), 51);

    /* Another blend is not answered by that one, and a better one takes its place. */
    prompt.request.keep = LARDER_KEEP_CACHED;
    blend("full");
    assert_prefilled();
    larder_blended_free(&blended);
    ck_assert_uint_eq(stored_at(LARDER_QUALITY_EXACT), prompt.count);
    blend("none");
    expect_span(&blended.spans[0], LARDER_BLEND_PREFIX, 0, prompt.count - 1, 0);
    expect_span(&blended.spans[1], LARDER_BLEND_SUFFIX, prompt.count - 1, 1, prompt.count - 1);
    assert_prefilled();
    larder_blended_free(&blended);
    end();
}
END_TEST

/* --- the plan -------------------------------------------------------------------------------- */

START_TEST(plan_says_it_before)
{
    begin();
    struct larder_blend_plan plan;
    world_store_pieces(&world, &prompt);
    prompt.request.method = "link k=8";
    ck_assert_int_eq(larder_blend_plan(world.model, &plan, &prompt.request), 0);
    ck_assert_uint_eq(plan.tokens, prompt.count);
    ck_assert_uint_eq(plan.source_tokens[LARDER_BLEND_PREFIX], 51);
    ck_assert_uint_eq(plan.source_tokens[LARDER_BLEND_MOVED], 111);
    ck_assert_uint_eq(plan.source_tokens[LARDER_BLEND_MISSING], 0);
    ck_assert_uint_eq(plan.source_tokens[LARDER_BLEND_SUFFIX], 23);
    ck_assert_double_eq_tol(plan.share, 16. / 162, 1e-9);
    ck_assert_uint_eq(plan.quality, LARDER_QUALITY_BLENDED);
    ck_assert(plan.bytes > 0);
    ck_assert(plan.compute_us > 0);
    ck_assert(plan.compute_us < plan.prefill_us);
    ck_assert_uint_eq(plan.ready, 1);
    ck_assert_uint_eq(plan.positions_max, 4096);
    const double share = plan.share;
    larder_blend_plan_free(&plan);
    blend("link k=8");
    ck_assert_double_eq_tol(blended.share, share, 1e-9);
    larder_blended_free(&blended);

    prompt.request.method = "full";
    ck_assert_int_eq(larder_blend_plan(world.model, &plan, &prompt.request), 0);
    ck_assert_uint_eq(plan.quality, LARDER_QUALITY_EXACT);
    larder_blend_plan_free(&plan);

    /* What is not known may cost all, but is not promised to be exact; nonsense costs nothing. */
    static const char *const odd[] = {"guess", "link k=-5", "random r=-1e30",
                                      "cacheblend layer=-9"};
    for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++) {
        prompt.request.method = odd[i];
        ck_assert_int_eq(larder_blend_plan(world.model, &plan, &prompt.request), 0);
        ck_assert_uint_eq(plan.quality, LARDER_QUALITY_BLENDED);
        ck_assert_double_eq_tol(plan.share, i == 0 ? 111. / 162 : 0, i == 3 ? 1 : 1e-9);
        ck_assert(plan.compute_us <= plan.prefill_us);
        larder_blend_plan_free(&plan);
    }
    end();
}
END_TEST

/* Another extra is another chunk. */
START_TEST(extra_is_part_of_the_chunk)
{
    begin();
    world_store_pieces(&world, &prompt);
    struct larder_blend_plan plan;
    prompt.pieces[1].extra = "salt";
    prompt.pieces[1].extra_bytes = 4;
    prompt.request.suffix.extra = "pepper";
    prompt.request.suffix.extra_bytes = 6;
    ck_assert_int_eq(larder_blend_plan(world.model, &plan, &prompt.request), 0);
    ck_assert_uint_eq(plan.source_tokens[LARDER_BLEND_PREFIX], 0);
    ck_assert_uint_eq(plan.source_tokens[LARDER_BLEND_MISSING], 71);
    ck_assert_uint_eq(plan.source_tokens[LARDER_BLEND_MOVED], 51 + 40);
    larder_blend_plan_free(&plan);
    blend("full");
    assert_prefilled();
    larder_blended_free(&blended);
    end();
}
END_TEST

/* --- what cannot be done --------------------------------------------------------------------- */

static void expect_refused(int code, const char *what)
{
    int err = blend_now();
    ck_assert_msg(err == code, "%s: %d: %s", what, err, larder_last_error());
}

START_TEST(refused)
{
    begin();
    const struct larder_blend_request good = prompt.request;
    prompt.request.piece_count = 0;
    expect_refused(-EINVAL, "no pieces");
    prompt.request = good;
    prompt.pieces[1].token_count = 0;
    expect_refused(-EINVAL, "an empty piece");
    prompt.pieces[1].token_count = 71;
    prompt.request.suffix.token_count = 0;
    expect_refused(-EINVAL, "an empty suffix");
    prompt.request = good;
    prompt.tokens[60] = 272;
    expect_refused(-EINVAL, "a token outside of the vocabulary");
    prompt.tokens[60] = 'x';
    prompt.request.method = "cacheblend r=2";
    expect_refused(-EINVAL, "a share of 2");
    prompt.request.method = "guess";
    expect_refused(-EINVAL, "an unknown method");
    prompt.request = good;
    prompt.request.reserved[3] = 1;
    expect_refused(-EINVAL, "reserved bytes");
    prompt.request = good;

    static uint32_t many[5000];
    struct larder_prompt long_piece = {.tokens = many, .token_count = 4090};
    prompt.request.pieces = &long_piece;
    prompt.request.piece_count = 1;
    expect_refused(-EINVAL, "more tokens than the layout has room for");
    struct larder_kv_cache *room;
    ck_assert_int_eq(larder_llama_cache_open(world.llama, &room, 4096, 0), 0);
    struct larder_layout layout = larder_cache_layout(room);
    layout.token_capacity = 5000;
    ck_assert_int_eq(larder_blend(world.model, &blended, &prompt.request, &layout), LARDER_ELIMIT);
    larder_kv_cache_close(room);
    prompt.request = good;

    struct larder_model_desc desc = world.desc;
    struct larder_model *other;
    struct larder_blend_plan plan;
    desc.weights[0] ^= 1;
    ck_assert_int_eq(larder_model_open(world.larder, &other, &desc), 0);
    ck_assert_int_eq(larder_blend_plan(other, &plan, &prompt.request), LARDER_EMODEL);
    larder_model_close(other);
    memcpy(desc.name, "other", 6);
    desc.dtype = LARDER_F16;
    ck_assert_int_eq(larder_model_open(world.larder, &other, &desc), 0);
    ck_assert_int_eq(larder_blend_plan(other, &plan, &prompt.request), LARDER_EUNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(larder_last_error(), "--model"));
    /* Of use all the same to an engine that runs its own layers. */
    prompt.request.start = LARDER_START_TOKEN;
    prompt.request.start_token = WORLD_BOS;
    ck_assert_int_eq(larder_blend_plan(other, &plan, &prompt.request), 0);
    ck_assert_uint_eq(plan.ready, 0);
    ck_assert_uint_eq(plan.source_tokens[LARDER_BLEND_MISSING], 162);
    larder_blend_plan_free(&plan);
    larder_model_close(other);
    prompt.request = good;
    blend("none");
    larder_blended_free(&blended);
    end();
}
END_TEST

/* --- trouble --------------------------------------------------------------------------------- */

static void *blend_aside(void *argument)
{
    int *err = argument;
    __atomic_store_n(err, blend_now(), __ATOMIC_RELAXED);
    return NULL;
}

/* Killed while it blends: it is done once more, by the next one. */
START_TEST(a_killed_worker_is_replaced)
{
    begin();
    world_store_pieces(&world, &prompt);
    prompt.request.method = "full";
    const pid_t worker = world_worker(&world);
    ck_assert_int_gt(worker, 0);
    kill(worker, SIGSTOP);
    pthread_t thread;
    int err = 1;
    pthread_create(&thread, NULL, blend_aside, &err);
    sleep_ms(100);
    kill(worker, SIGKILL);
    pthread_join(thread, NULL);
    ck_assert_msg(err == 0, "%s", larder_error_text(err));
    ck_assert_int_ne(world_worker(&world), worker);
    assert_prefilled();
    larder_blended_free(&blended);
    end();
}
END_TEST

static void shell(const char *form, const char *folder)
{
    char command[1024];
    snprintf(command, sizeof(command), form, folder);
    ck_assert_int_eq(system(command), 0);
}

/* Pid of the worker of the configuration's second model. */
static pid_t second_worker(void)
{
    struct peer peer;
    struct wire_admin_index index = {.index = 1};
    peer_connect(&peer, world.fixture.control_socket);
    peer_say_hello(&peer);
    uint64_t request = peer_send(&peer, WIRE_ADMIN_WORKERS, &index, sizeof(index), NULL, 0);
    const struct wire_admin_worker_ok *row =
        peer_expect(&peer, &answer, WIRE_ADMIN_WORKER_OK, request);
    const pid_t pid = (pid_t)row->pid;
    peer_close(&peer);
    return pid;
}

/* Weights are exchanged and the worker ends with a blend under way: its successor must not do with
 * its weights what was asked of others. */
START_TEST(a_worker_with_other_weights)
{
    char folder[] = "/tmp/larder-weights-XXXXXX", config[128];
    struct larder_model_desc desc;
    struct larder_model *model, *first;
    ck_assert_ptr_nonnull(mkdtemp(folder));
    shell("ln -s \"$PWD\"/tests/models/tiny/*.safetensors %s", folder);
    shell("cp tests/models/tiny/config.json %s", folder);
    snprintf(config, sizeof(config), "model other = %s kv=f32\n", folder);
    begin_with(config);
    larder_kv_cache_close(got);
    ck_assert_int_eq(larder_llama_cache_open(world.llama, &got, WORLD_TOKENS_MAX, LARDER_F32), 0);
    ck_assert_int_eq(larder_llama_describe(world.llama, &desc, LARDER_F32), 0);
    ck_assert_int_eq(larder_model_open(world.larder, &model, &desc), 0);
    first = world.model;
    world.model = model;
    world_wait_ready(&world);
    blend("full");
    larder_blended_free(&blended);

    pthread_t thread;
    int err = 1;
    const pid_t worker = second_worker();
    ck_assert_int_gt(worker, 0);
    kill(worker, SIGSTOP);
    pthread_create(&thread, NULL, blend_aside, &err);
    sleep_ms(100);
    shell("sed -i s/10000.0/20000.0/ %s/config.json", folder);
    kill(worker, SIGKILL);
    pthread_join(thread, NULL);
    ck_assert_int_eq(err, LARDER_EMODEL);
    expect_refused(LARDER_EMODEL, "other weights");
    larder_model_close(model);
    world.model = first;
    shell("rm -r %s", folder);
    end();
}
END_TEST

/* Whatever is done to workers, the request ends with a word, and larderd serves on. */
START_TEST(workers_that_keep_dying)
{
    begin();
    world_store_pieces(&world, &prompt);
    prompt.request.deadline_ms = 3000;
    pthread_t thread;
    int err = 1;
    kill(world_worker(&world), SIGSTOP);
    pthread_create(&thread, NULL, blend_aside, &err);
    sleep_ms(50);
    for (int i = 0; i < 60 && __atomic_load_n(&err, __ATOMIC_RELAXED) == 1; i++) {
        const pid_t worker = world_worker(&world);
        if (worker > 0)
            kill(worker, SIGKILL);
        sleep_ms(50);
    }
    pthread_join(thread, NULL);
    ck_assert_msg(err == 0 || err == LARDER_EDOWN || err == LARDER_ESTALE || err == -ETIMEDOUT,
                  "%d", err);
    if (err == 0)
        larder_blended_free(&blended);
    ck_assert(fixture_alive(&world.fixture));
    world_wait_ready(&world);
    prompt.request.deadline_ms = 0;
    blend("none");
    larder_blended_free(&blended);
    end();
}
END_TEST

START_TEST(a_deadline_is_said_to_be_missed)
{
    begin();
    const pid_t worker = world_worker(&world);
    kill(worker, SIGSTOP);
    prompt.request.deadline_ms = 200;
    expect_refused(-ETIMEDOUT, "a stopped worker");
    kill(worker, SIGCONT);
    prompt.request.deadline_ms = 0;
    blend("full");
    assert_prefilled();
    larder_blended_free(&blended);
    ck_assert_int_eq(world_worker(&world), worker);
    end();
}
END_TEST

/* A client that ends with its blend under way, and one that ends before its turn. */
START_TEST(clients_that_die)
{
    begin();
    const pid_t worker = world_worker(&world);
    kill(worker, SIGSTOP);
    pid_t children[2];
    for (int i = 0; i < 2; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            const struct larder_options options = {.socket = world.fixture.socket};
            struct larder *larder;
            if (larder_connect(&larder, &options) < 0 ||
                larder_model_open(larder, &world.model, &world.desc) < 0)
                _exit(1);
            blend_now();
            _exit(2);
        }
        sleep_ms(100);
    }
    for (int i = 0; i < 2; i++) {
        int status;
        kill(children[i], SIGKILL);
        ck_assert_int_eq(waitpid(children[i], &status, 0), children[i]);
        ck_assert(WIFSIGNALED(status));
    }
    sleep_ms(300);
    kill(worker, SIGCONT);
    blend("full");
    assert_prefilled();
    larder_blended_free(&blended);
    ck_assert_int_eq(world_worker(&world), worker);
    end();
}
END_TEST

struct user {
    pthread_t thread;
    const char *method;
    int err;
    bool same;
};

static void *use(void *argument)
{
    struct user *user = argument;
    const struct larder_options options = {.socket = world.fixture.socket, .timeout_ms = 60000};
    struct larder *larder = NULL;
    struct larder_model *model = NULL;
    struct larder_blend_request request = prompt.request;
    struct larder_kv_cache *cache;
    request.method = user->method;
    user->err = larder_connect(&larder, &options);
    if (user->err == 0)
        user->err = larder_model_open(larder, &model, &world.desc);
    if (user->err == 0)
        user->err = larder_llama_cache_open(world.llama, &cache, prompt.count, 0);
    for (int i = 0; i < 3 && user->err == 0; i++) {
        const struct larder_layout layout = larder_cache_layout(cache);
        struct larder_blended mine;
        user->err = larder_blend(model, &mine, &request, &layout);
        user->same = user->err == 0 && memcmp(mine.logits, blended.logits, 272 * 4) == 0;
        larder_blended_free(&mine);
    }
    larder_kv_cache_close(cache);
    larder_model_close(model);
    larder_close(larder);
    return NULL;
}

START_TEST(several_take_turns)
{
    begin();
    world_store_pieces(&world, &prompt);
    struct user users[4] = {
        {.method = "full"}, {.method = "none"}, {.method = "full"}, {.method = "link k=4"}};
    blend("full");
    for (int i = 0; i < 4; i++)
        pthread_create(&users[i].thread, NULL, use, &users[i]);
    for (int i = 0; i < 4; i++) {
        pthread_join(users[i].thread, NULL);
        ck_assert_int_eq(users[i].err, 0);
        ck_assert_int_eq(users[i].same, strcmp(users[i].method, "full") == 0);
    }
    larder_blended_free(&blended);
    end();
}
END_TEST

START_TEST(no_model_no_blend)
{
    struct larder *larder;
    struct larder_model *model;
    struct larder_blend_plan plan;
    begin();
    struct fixture plain;
    fixture_start(&plain, NULL);
    const struct larder_options options = {.socket = plain.socket};
    ck_assert_int_eq(larder_connect(&larder, &options), 0);
    ck_assert_int_eq(larder_model_open(larder, &model, &world.desc), 0);
    ck_assert_int_eq(larder_blend_plan(model, &plan, &prompt.request), LARDER_EUNSUPPORTED);
    const struct larder_layout layout = larder_cache_layout(got);
    ck_assert_int_eq(larder_blend(model, &blended, &prompt.request, &layout), LARDER_EUNSUPPORTED);
    larder_model_close(model);
    larder_close(larder);
    fixture_stop(&plain);
    end();
}
END_TEST

/* --- frames of its own ----------------------------------------------------------------------- */

static void open_peer(struct peer *peer)
{
    peer_connect(peer, world.fixture.socket);
    peer_say_hello(peer);
    peer_open_model(peer, &world.desc);
    peer_open_staging(peer, 1u << 20);
    memset(peer->staging, 0, peer->staging_bytes);
}

/* A good request: one piece of 30 tokens, a suffix of 2. */
static struct wire_blend good_blend(struct peer *peer)
{
    const uint32_t row[2] = {30, 0};
    memcpy(peer->staging, row, sizeof(row));
    return (struct wire_blend){.model = peer->model,
                               .piece_count = 1,
                               .staging_bytes = 65536,
                               .token_count = 32,
                               .suffix_tokens = 2,
                               .deadline_ms = 20000,
                               .start = WIRE_TOKEN_MODEL,
                               .method = "none"};
}

static uint64_t send_blend(struct peer *peer, const struct wire_blend *wire)
{
    return peer_send(peer, WIRE_BLEND, wire, sizeof(*wire), NULL, 0);
}

/* What the daemon can see is wrong closes; what the worker finds is an error. Neither harms it. */
START_TEST(requests_that_are_wrong)
{
    struct peer peer;
    struct wire_blend wire;
    uint32_t row[2];
    begin();
    const pid_t worker = world_worker(&world);
    for (int i = 0; i < 4; i++) {
        open_peer(&peer);
        wire = good_blend(&peer);
        if (i == 0)
            wire.staging_offset = 1u << 20;
        else if (i == 1)
            wire.staging_bytes = (1u << 20) + 1;
        else if (i == 2)
            wire.staging_bytes = 272 * 4;
        else
            wire.model = 1;
        peer_expect_error(&peer, send_blend(&peer, &wire), LARDER_EPROTO);
        peer_expect_close(&peer);
        peer_close(&peer);
    }
    open_peer(&peer);
    static const uint32_t rows[][2] = {{31, 0}, {0, 0}, {30, 1025}, {UINT32_MAX, 0}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        wire = good_blend(&peer);
        memcpy(peer.staging, rows[i], sizeof(row));
        peer_expect_error(&peer, send_blend(&peer, &wire), -EINVAL);
    }
    wire = good_blend(&peer);
    memset(peer.staging + 8, 0xff, 128);
    peer_expect_error(&peer, send_blend(&peer, &wire), -EINVAL);
    wire = good_blend(&peer);
    wire.token_count = LARDER_PROMPT_TOKENS_MAX;
    wire.staging_bytes = 1u << 20;
    peer_expect_error(&peer, send_blend(&peer, &wire), LARDER_EPROTO);
    peer_expect_close(&peer);
    peer_close(&peer);
    ck_assert_int_eq(world_worker(&world), worker);
    end();
}
END_TEST

START_TEST(reads_that_are_wrong)
{
    struct peer peer;
    begin();
    open_peer(&peer);
    struct wire_blend wire = good_blend(&peer);
    memset(peer.staging + 8, 0, 128);
    struct wire_blend_read read = {
        .blend = 1, .token_count = 32, .layer_count = 6, .staging_bytes = 32 * 3072};
    peer_expect_error(&peer, peer_send(&peer, WIRE_BLEND_READ, &read, sizeof(read), NULL, 0),
                      LARDER_ESTALE);
    read.blend = send_blend(&peer, &wire);
    peer_expect(&peer, &answer, WIRE_BLEND_OK, read.blend);
    /* One at a time on a connection. */
    peer_expect_error(&peer, send_blend(&peer, &wire), -EBUSY);
    static const struct {
        uint64_t token_first, token_count, bytes;
        uint32_t layer_first, layer_count;
    } bad[] = {{1, 32, 32 * 3072, 0, 6}, {32, 1, 3072, 0, 6},     {0, 33, 33 * 3072, 0, 6},
               {0, 32, 32 * 3072, 1, 6}, {0, 32, 32 * 512, 6, 1}, {0, 32, 32 * 3072 - 2, 0, 6}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        const struct wire_blend_read wrong = {.blend = read.blend,
                                              .token_first = bad[i].token_first,
                                              .token_count = bad[i].token_count,
                                              .layer_first = bad[i].layer_first,
                                              .layer_count = bad[i].layer_count,
                                              .staging_bytes = bad[i].bytes};
        peer_expect_error(&peer, peer_send(&peer, WIRE_BLEND_READ, &wrong, sizeof(wrong), NULL, 0),
                          -EINVAL);
    }
    uint64_t request = peer_send(&peer, WIRE_BLEND_READ, &read, sizeof(read), NULL, 0);
    peer_expect(&peer, &answer, WIRE_BLEND_READ_OK, request);
    const struct wire_release release = {.count = 1};
    peer_send(&peer, WIRE_RELEASE, &release, sizeof(release), &read.blend, 8);
    peer_expect_error(&peer, peer_send(&peer, WIRE_BLEND_READ, &read, sizeof(read), NULL, 0),
                      LARDER_ESTALE);
    peer_close(&peer);
    end();
}
END_TEST

/* Who keeps a blend keeps others from the worker: not for longer than lease_ms. And a worker that
 * ends takes what it kept along. */
START_TEST(kept_too_long)
{
    struct peer peer;
    begin_with("lease_ms = 300\n");
    open_peer(&peer);
    struct wire_blend wire = good_blend(&peer);
    memset(peer.staging + 8, 0, 128);
    peer_expect(&peer, &answer, WIRE_BLEND_OK, send_blend(&peer, &wire));
    blend("full");
    assert_prefilled();
    larder_blended_free(&blended);

    wire = good_blend(&peer);
    memset(peer.staging + 8, 0, 128);
    struct wire_blend_read read = {.token_count = 32, .layer_count = 6, .staging_bytes = 98304};
    read.blend = send_blend(&peer, &wire);
    peer_expect(&peer, &answer, WIRE_BLEND_OK, read.blend);
    /* A worker that is stuck at a read holds nobody for longer, either; here it recovers. */
    const pid_t worker = world_worker(&world);
    kill(worker, SIGSTOP);
    peer_expect_error(&peer, peer_send(&peer, WIRE_BLEND_READ, &read, sizeof(read), NULL, 0),
                      LARDER_ESTALE);
    kill(worker, SIGCONT);
    blend("full");
    assert_prefilled();
    larder_blended_free(&blended);
    ck_assert_int_eq(world_worker(&world), worker);

    wire = good_blend(&peer);
    memset(peer.staging + 8, 0, 128);
    read.blend = send_blend(&peer, &wire);
    peer_expect(&peer, &answer, WIRE_BLEND_OK, read.blend);
    kill(worker, SIGKILL);
    sleep_ms(100);
    peer_expect_error(&peer, peer_send(&peer, WIRE_BLEND_READ, &read, sizeof(read), NULL, 0),
                      LARDER_ESTALE);
    peer_close(&peer);
    end();
}
END_TEST

/* What an operator sees of it. */
START_TEST(workers_are_listed)
{
    struct peer peer;
    struct wire_admin_index index = {.index = 0};
    char program[512], command[1024];
    begin_with("");
    world_store_pieces(&world, &prompt);
    blend(NULL); /* by the model's own method */
    ck_assert_double_eq_tol(blended.share, 10. / 162, 1e-9);
    larder_blended_free(&blended);
    blend("full");
    larder_blended_free(&blended);
    prompt.request.method = "guess";
    expect_refused(-EINVAL, "an unknown method");
    peer_connect(&peer, world.fixture.control_socket);
    peer_say_hello(&peer);
    uint64_t request = peer_send(&peer, WIRE_ADMIN_WORKERS, &index, sizeof(index), NULL, 0);
    const struct wire_admin_worker_ok *row =
        peer_expect(&peer, &answer, WIRE_ADMIN_WORKER_OK, request);
    ck_assert_uint_eq(row->state, WIRE_WORKER_READY);
    ck_assert_int_eq((pid_t)row->pid, world_worker(&world));
    ck_assert_uint_eq(row->starts, 1);
    ck_assert_uint_eq(row->blends, 2);
    ck_assert_uint_eq(row->failures, 1);
    ck_assert(row->busy_us > 0);
    ck_assert_str_eq(row->worker.name, "tiny");
    ck_assert_str_eq(row->worker.method, "link k=5");
    index.index = 1;
    peer_expect_error(&peer, peer_send(&peer, WIRE_ADMIN_WORKERS, &index, sizeof(index), NULL, 0),
                      LARDER_ENOTFOUND);
    peer_close(&peer);
    fixture_program(program, "larder");
    snprintf(command, sizeof(command), "%s --socket %s workers | grep -q '^tiny .* ready '",
             program, world.fixture.control_socket);
    ck_assert_int_eq(system(command), 0);
    end();
}
END_TEST

/* Chunks are removed and put again while they are blended: never wrong, whatever was there. */
START_TEST(pieces_that_come_and_go)
{
    begin();
    const struct larder_prompt chunk = {.tokens = prompt.pieces[0].tokens, .token_count = 51};
    uint32_t moved[WORLD_TOKENS_MAX];
    const uint32_t count = world_tokens(&world, moved, firsts[1], counts[1], true);
    const struct larder_prompt other = {.tokens = moved, .token_count = count};
    for (int i = 0; i < 10; i++) {
        world_store_pieces(&world, &prompt);
        prompt.request.method = i % 2 ? "full" : "link k=71";
        pthread_t thread;
        int err = 1;
        uint64_t removed;
        pthread_create(&thread, NULL, blend_aside, &err);
        sleep_ms(i);
        struct larder *larder;
        struct larder_model *model;
        const struct larder_options options = {.socket = world.fixture.socket};
        ck_assert_int_eq(larder_connect(&larder, &options), 0);
        ck_assert_int_eq(larder_model_open(larder, &model, &world.desc), 0);
        (void)larder_remove(model, &other, 16, &removed);
        (void)larder_remove(model, &chunk, 16, &removed);
        larder_model_close(model);
        larder_close(larder);
        pthread_join(thread, NULL);
        ck_assert_int_eq(err, 0);
        assert_prefilled();
        larder_blended_free(&blended);
    }
    end();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client_blend");
    TCase *result = tcase_create("result");
    tcase_set_timeout(result, 120);
    tcase_add_test(result, full_is_a_prefill);
    tcase_add_test(result, none_is_moved);
    tcase_add_test(result, what_is_missing_is_computed);
    tcase_add_test(result, a_method_recomputes_some);
    tcase_add_test(result, parts_and_layouts);
    tcase_add_test(result, kept_at_its_quality);
    suite_add_tcase(suite, result);
    TCase *plan = tcase_create("plan");
    tcase_set_timeout(plan, 120);
    tcase_add_test(plan, plan_says_it_before);
    tcase_add_test(plan, extra_is_part_of_the_chunk);
    tcase_add_test(plan, refused);
    tcase_add_test(plan, no_model_no_blend);
    suite_add_tcase(suite, plan);
    TCase *trouble = tcase_create("trouble");
    tcase_set_timeout(trouble, 120);
    tcase_add_test(trouble, a_killed_worker_is_replaced);
    tcase_add_test(trouble, a_worker_with_other_weights);
    tcase_add_test(trouble, workers_that_keep_dying);
    tcase_add_test(trouble, a_deadline_is_said_to_be_missed);
    tcase_add_test(trouble, clients_that_die);
    tcase_add_test(trouble, several_take_turns);
    tcase_add_test(trouble, pieces_that_come_and_go);
    suite_add_tcase(suite, trouble);
    TCase *frames = tcase_create("frames");
    tcase_set_timeout(frames, 120);
    tcase_add_test(frames, requests_that_are_wrong);
    tcase_add_test(frames, reads_that_are_wrong);
    tcase_add_test(frames, kept_too_long);
    tcase_add_test(frames, workers_are_listed);
    suite_add_tcase(suite, frames);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
