/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   many clients at once never get a wrong byte, an answer that PROTOCOL.md does not know, or
 *         none at all, while memory is short, entries come and go, and clients leave in between;
 *         and a daemon that is stopped or killed meanwhile comes back with right bytes.
 * Method: six processes, each with random operations over the same few chains, whose bytes follow
 *         from the key, in a store whose host tier holds a fraction of them. The seed is printed.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/daemon/fixture.h"
#include "tests/daemon/peer.h"

#define CLIENTS      6
#define CHAINS       60u
#define CHAIN_BLOCKS 10u
#define RUN_MS       4000

static struct fixture fixture;

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

struct client {
    struct peer peer;
    struct block blocks[CHAIN_BLOCKS];
    uint32_t chain;
    uint64_t kv_bytes;
    uint8_t *wanted;
    uint8_t *got;
    uint64_t puts, gets, checked, removed;
};

static uint32_t below(uint32_t end)
{
    return (uint32_t)rand() % end;
}

static uint32_t kv_seed(uint32_t chain, uint32_t block)
{
    return chain * 1000 + block;
}

static void put_some(struct client *client)
{
    uint32_t count = 1 + below(CHAIN_BLOCKS);
    enum larder_wait wait = below(4) ? LARDER_CACHED : LARDER_DURABLE;
    for (uint32_t i = 0; i < count; i++) {
        peer_fill_kv(client->wanted, client->kv_bytes, kv_seed(client->chain, i));
        int err = peer_put(&client->peer, &client->blocks[i], client->wanted, wait,
                           below(2) ? "raw" : "exact", NULL);
        client->puts++;
        if (err == -EBUSY || err == LARDER_EFULL || err == LARDER_ENOPARENT)
            return;
        /* Another client may have removed it while this one waited for the disk. */
        ck_assert_msg(err == 0 || err == LARDER_ENOTFOUND || err == -ECANCELED, "put: %d", err);
    }
}

static void get_some(struct client *client)
{
    struct wire_keys keys = {
        .model = client->peer.model, .key_count = CHAIN_BLOCKS, .worst = LARDER_QUALITY_EXACT};
    struct larder_key chain[CHAIN_BLOCKS];
    struct answer answer;
    for (uint32_t i = 0; i < CHAIN_BLOCKS; i++)
        chain[i] = client->blocks[i].key;
    uint64_t request =
        peer_send(&client->peer, WIRE_GET, &keys, sizeof(keys), chain, sizeof(chain));
    peer_receive(&client->peer, &answer);
    client->gets++;
    const struct wire_frame *frame = (const struct wire_frame *)answer.bytes;
    ck_assert_uint_gt(answer.byte_count, 0);
    ck_assert_uint_eq(frame->request, request);
    if (frame->type == WIRE_ERROR) {
        int code = ((const struct wire_error *)(frame + 1))->code;
        ck_assert_msg(code == -EBUSY, "get: %d", code);
        return;
    }
    ck_assert_uint_eq(frame->type, WIRE_GET_OK);
    const struct wire_get_ok *ok = (const struct wire_get_ok *)(frame + 1);
    struct wire_ref refs[CHAIN_BLOCKS];
    uint32_t loaded = ok->ref_count;
    memcpy(refs, ok + 1, ok->ref_count * sizeof(refs[0]));
    if (!ok->ready) {
        const struct wire_loaded *body = peer_expect(&client->peer, &answer, WIRE_LOADED, request);
        loaded = body->loaded;
        ck_assert_int_ne(body->error, LARDER_ECORRUPT);
    }
    for (uint32_t i = 0; i < loaded; i++) {
        peer_fill_kv(client->wanted, client->kv_bytes, kv_seed(client->chain, i));
        int err =
            peer_read(&client->peer, &refs[i], &client->blocks[i], client->got, client->kv_bytes);
        ck_assert_msg(err == 0, "chain %u block %u: %d", client->chain, i, err);
        ck_assert_mem_eq(client->wanted, client->got, client->kv_bytes);
        client->checked++;
    }
    if (below(50))
        peer_release(&client->peer, request);
}

static void remove_some(struct client *client)
{
    struct answer answer;
    uint64_t request = peer_send(&client->peer, WIRE_REMOVE,
                                 client->blocks[below(CHAIN_BLOCKS)].key.bytes, 32, NULL, 0);
    peer_receive(&client->peer, &answer);
    const struct wire_frame *frame = (const struct wire_frame *)answer.bytes;
    ck_assert_uint_eq(frame->request, request);
    if (frame->type == WIRE_ERROR)
        ck_assert_int_eq(((const struct wire_error *)(frame + 1))->code, LARDER_ENOTFOUND);
    else
        client->removed++;
}

/* A PUT or GET whose answer nobody waits for, then a close. */
static void leave(struct client *client)
{
    struct wire_put put;
    peer_fill_kv(client->wanted, client->kv_bytes, kv_seed(client->chain, 0));
    peer_stage(&client->peer, &put, &client->blocks[0], client->wanted, 65536, LARDER_DURABLE,
               NULL);
    peer_send(&client->peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
    struct wire_keys keys = {
        .model = client->peer.model, .key_count = 1, .worst = LARDER_QUALITY_EXACT};
    peer_send(&client->peer, WIRE_GET, &keys, sizeof(keys), client->blocks[0].key.bytes, 32);
    /* The daemon may still read the staging, which must stay what it is: it is not reused. */
    peer_close(&client->peer);
    peer_open(&client->peer, fixture.socket);
}

static void run_client(unsigned seed)
{
    struct client client = {0};
    srand(seed);
    peer_open(&client.peer, fixture.socket);
    client.kv_bytes = peer_kv_bytes(&client.peer, PEER_BLOCK_TOKENS);
    client.wanted = malloc(client.kv_bytes);
    client.got = malloc(client.kv_bytes);
    uint64_t end = now_ms() + RUN_MS;
    while (now_ms() < end) {
        client.chain = below(CHAINS);
        peer_chain(&client.peer, client.blocks, CHAIN_BLOCKS, client.chain);
        uint32_t what = below(100);
        if (what < 40)
            put_some(&client);
        else if (what < 92)
            get_some(&client);
        else if (what < 96)
            remove_some(&client);
        else if (what < 99)
            peer_lookup(&client.peer, client.blocks, CHAIN_BLOCKS);
        else
            leave(&client);
    }
    printf("seed %u: %llu puts, %llu gets, %llu blocks compared, %llu removals\n", seed,
           (unsigned long long)client.puts, (unsigned long long)client.gets,
           (unsigned long long)client.checked, (unsigned long long)client.removed);
    ck_assert_uint_gt(client.checked, 0);
    peer_close(&client.peer);
    free(client.wanted);
    free(client.got);
}

/* What a client process does, as a test of its own: Check cannot be shared by two processes. */
static unsigned client_seed;

START_TEST(one_client)
{
    run_client(client_seed);
}
END_TEST

static pid_t start_client(unsigned seed, bool is_silent)
{
    char text[16];
    snprintf(text, sizeof(text), "%u", seed);
    fflush(stdout);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid > 0)
        return pid;
    if (is_silent) {
        int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
    }
    execl("/proc/self/exe", "client", fixture.socket, text, (char *)NULL);
    _exit(127);
}

START_TEST(many_clients)
{
    const char *given = getenv("LARDER_SEED");
    unsigned seed = given ? (unsigned)atoi(given) : (unsigned)time(NULL);
    pid_t pids[CLIENTS];
    fixture_start(&fixture, "host_bytes = 4M\nslab_bytes = 1M\nssd_bytes = 24M\n"
                            "segment_bytes = 2M\nlease_ms = 20000\n");
    for (unsigned i = 0; i < CLIENTS; i++)
        pids[i] = start_client(seed + i, false);
    for (unsigned i = 0; i < CLIENTS; i++) {
        int status;
        ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "client with seed %u: %d",
                      seed + i, status);
    }
    ck_assert(fixture_alive(&fixture));
    peer_check_served(fixture.socket, 4711);
    fixture_stop(&fixture);
}
END_TEST

static void check_all_chains(void)
{
    struct client client = {0};
    peer_open(&client.peer, fixture.socket);
    client.kv_bytes = peer_kv_bytes(&client.peer, PEER_BLOCK_TOKENS);
    client.wanted = malloc(client.kv_bytes);
    client.got = malloc(client.kv_bytes);
    for (client.chain = 0; client.chain < CHAINS; client.chain++) {
        peer_chain(&client.peer, client.blocks, CHAIN_BLOCKS, client.chain);
        get_some(&client);
    }
    ck_assert_uint_gt(client.checked, 0);
    peer_close(&client.peer);
    free(client.wanted);
    free(client.got);
}

START_TEST(stops_under_load)
{
    const struct timespec moment = {.tv_nsec = 400000000};
    fixture_start(&fixture, "host_bytes = 4M\nslab_bytes = 1M\nssd_bytes = 24M\n"
                            "segment_bytes = 2M\n");
    for (unsigned round = 0; round < 6; round++) {
        pid_t pids[3];
        for (unsigned i = 0; i < 3; i++)
            pids[i] = start_client(100 * round + i, true); /* how they end does not matter */
        nanosleep(&moment, NULL);
        if (round % 2)
            fixture_kill(&fixture);
        else
            ck_assert_int_eq(fixture_terminate(&fixture), 0);
        for (unsigned i = 0; i < 3; i++) {
            kill(pids[i], SIGKILL);
            waitpid(pids[i], NULL, 0);
        }
        fixture_restart(&fixture);
        check_all_chains();
    }
    peer_check_served(fixture.socket, 4711);
    fixture_stop(&fixture);
}
END_TEST

int main(int argc, char **argv)
{
    bool is_client = argc == 3;
    Suite *suite = suite_create(is_client ? "client" : "daemon_stress");
    TCase *tests = tcase_create("stress");
    tcase_set_timeout(tests, 120);
    if (is_client) {
        snprintf(fixture.socket, sizeof(fixture.socket), "%s", argv[1]);
        client_seed = (unsigned)atoi(argv[2]);
        tcase_add_test(tests, one_client);
    } else {
        tcase_add_test(tests, many_clients);
        tcase_add_test(tests, stops_under_load);
    }
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, is_client ? CK_MINIMAL : CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
