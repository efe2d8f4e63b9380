/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   what the machine does to larderd takes nothing that was acknowledged: a wall clock that
 *         jumps, no locked memory, a memory cgroup that kills it, ten thousand connects.
 * Method: a real larderd under prlimit, in a cgroup of its own, with a preloaded clock. What this
 *         machine does not allow is skipped, with a line that says so. */
#include <check.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/daemon/fixture.h"
#include "tests/daemon/peer.h"
#include "tests/golden/chains.h"

#define TEN_YEARS_S 315576000ll

static struct fixture fixture;

static void sleep_ms(int ms)
{
    poll(NULL, 0, ms);
}

/* --- time ------------------------------------------------------------------------------------- */

#ifndef LARDER_SANITIZED /* whose runtime must be loaded first: nothing can be preloaded */
static void jump_to(const char *path, int64_t seconds)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pwrite(fd, &seconds, sizeof(seconds), 0), sizeof(seconds));
    close(fd);
}

START_TEST(the_wall_clock_jumps)
{
    struct block kept[2], more[2];
    struct wire_get_ok ok;
    struct wire_ref refs[2];
    struct wire_loaded loaded;
    struct peer peer;
    char module[512], preload[600], clock_path[96], clock[128];
    fixture_prepare(&fixture, "lease_ms = 60000\n");
    fixture_program(module, "tests/jumping_clock.so");
    snprintf(preload, sizeof(preload), "LD_PRELOAD=%s", module);
    snprintf(clock_path, sizeof(clock_path), "%s/clock", fixture.directory);
    snprintf(clock, sizeof(clock), "LARDER_TEST_CLOCK=%s", clock_path);
    const char *const prefix[] = {"env", preload, clock, NULL};
    fixture.prefix = prefix;
    jump_to(clock_path, 0);
    fixture_restart(&fixture);
    peer_open(&peer, fixture.socket);
    peer_chain(&peer, kept, 2, 1);
    peer_put_chain(&peer, kept, 2, 1, LARDER_DURABLE);
    uint64_t request = peer_get(&peer, kept, 2, &ok, refs, &loaded);

    static const int64_t jumps[] = {TEN_YEARS_S, -TEN_YEARS_S, 0};
    for (uint32_t i = 0; i < 3; i++) {
        jump_to(clock_path, jumps[i]);
        sleep_ms(300);
        ck_assert_uint_eq(peer_lookup(&peer, kept, 2), 2);
        peer_chain(&peer, more, 2, 10 + i);
        peer_put_chain(&peer, more, 2, 10 + i, LARDER_DURABLE);
        peer_check_served(fixture.socket, 20 + i);
    }
    /* The lease was neither ended early nor is it held for ten years. */
    ck_assert(!fixture_log_has(&fixture, "revoked"));
    peer_release(&peer, request);
    peer_close(&peer);

    /* A start in another year than the stop. */
    for (uint32_t i = 0; i < 2; i++) {
        ck_assert_int_eq(fixture_terminate(&fixture), 0);
        jump_to(clock_path, jumps[i]);
        fixture_restart(&fixture);
        peer_open(&peer, fixture.socket);
        ck_assert_uint_eq(peer_lookup(&peer, kept, 2), 2);
        ck_assert_uint_eq(peer_lookup(&peer, more, 2), 2);
        peer_close(&peer);
        peer_check_served(fixture.socket, 30 + i);
    }
    fixture_stop(&fixture);
}
END_TEST
#endif

/* --- memory ----------------------------------------------------------------------------------- */

/* Of a user without privileges: root has them, and gives them up here. */
START_TEST(no_locked_memory)
{
    const char *const prefix[] = {"setpriv",   "--bounding-set", "-ipc_lock",     "--inh-caps",
                                  "-ipc_lock", "prlimit",        "--memlock=0:0", NULL};
    if (system("setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock prlimit --memlock=0:0 true "
               "2>/dev/null") != 0) {
        fprintf(stderr, "skipped: setpriv and prlimit cannot take privileges away here\n");
        return;
    }
    fixture_prepare(&fixture, "io = auto\n");
    fixture.prefix = prefix;
    fixture_restart(&fixture);
    peer_check_served(fixture.socket, 1);
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    fixture_restart(&fixture);
    peer_check_served(fixture.socket, 2);
    fixture_stop(&fixture);
}
END_TEST

#ifndef LARDER_SANITIZED /* whose shadow is beyond any such limit */
static bool write_text(const char *folder, const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "we");
    if (!file)
        return false;
    bool good = fputs(text, file) >= 0;
    return fclose(file) == 0 && good;
}

/* A memory cgroup of that limit, of either kind; false where none may be made. */
static bool make_cgroup(char path[128], const char *limit)
{
    static const char *const parents[] = {"/sys/fs/cgroup/memory", "/sys/fs/cgroup"};
    for (int i = 0; i < 2; i++) {
        snprintf(path, 128, "%s/larder-test-%d", parents[i], (int)getpid());
        if (mkdir(path, 0700) != 0)
            continue;
        if (write_text(path, i ? "memory.max" : "memory.limit_in_bytes", limit)) {
            write_text(path, i ? "memory.swap.max" : "memory.memsw.limit_in_bytes",
                       i ? "0" : limit);
            return true;
        }
        rmdir(path);
    }
    return false;
}

#define LIMITED_CHAINS 4000u

START_TEST(killed_for_its_memory)
{
    char group[128], procs[160];
    if (!make_cgroup(group, "48M")) {
        fprintf(stderr, "skipped: no memory cgroup can be made here\n");
        return;
    }
    snprintf(procs, sizeof(procs), "%s/cgroup.procs", group);
    const char *const prefix[] = {"sh", "-c", "echo $$ >\"$0\" && exec \"$@\"", procs, NULL};
    fixture_prepare(&fixture, CHAINS_CONFIG "host_bytes = 512M\nssd_bytes = 1G\n");
    fixture.prefix = prefix;
    fixture_restart(&fixture);
    uint32_t acknowledged = 0;
    bool alive = true;
    for (uint32_t i = 1; i <= LIMITED_CHAINS && alive; i++) {
        const struct chain chain = {.number = i * 2};
        int err = chain_put(&fixture, &chain, CHAIN_TOKENS_MAX);
        if (err == 0 && acknowledged + 1 == i)
            acknowledged = i;
        alive = fixture_alive(&fixture);
    }
    fprintf(stderr, "%u chains acknowledged, then %s\n", acknowledged,
            alive ? "refused" : "killed");
    ck_assert_uint_gt(acknowledged, 10);
    ck_assert(!alive);
    fixture_kill(&fixture);
    rmdir(group);
    /* With memory again. */
    fixture.prefix = NULL;
    fixture_restart(&fixture);
    for (uint32_t i = 1; i <= acknowledged; i++) {
        const struct chain chain = {.number = i * 2};
        char digest[CHAIN_DIGEST_TEXT];
        ck_assert_int_eq(chain_get(&fixture, &chain, CHAIN_TOKENS_MAX, digest), CHAIN_TOKENS_MAX);
    }
    fixture_stop(&fixture);
}
END_TEST
#endif

/* --- connections ------------------------------------------------------------------------------ */

#define CONNECTS 10000u
#define HELD     400u

static int connect_raw(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", fixture.socket);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(fd, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Hundreds are open at any time, more than may be; none says anything, and many are closed again
 * before larderd can tell them that they are refused. Who is in is served, and afterwards everybody
 * is; nothing is kept of them. */
START_TEST(ten_thousand_connects)
{
    struct peer early;
    struct block blocks[2];
    int held[HELD];
    memset(held, -1, sizeof(held));
    fixture_start(&fixture, "connections_max = 300\n");
    int fds_before = fixture_fd_count(&fixture);
    peer_open(&early, fixture.socket);
    peer_chain(&early, blocks, 2, 5);
    peer_put_chain(&early, blocks, 2, 5, LARDER_CACHED);
    for (uint32_t i = 0; i < CONNECTS; i++) {
        int *at = &held[i % HELD];
        if (*at >= 0)
            close(*at);
        *at = connect_raw();
        ck_assert_int_ge(*at, 0);
        if (i % 500 == 0)
            ck_assert_uint_eq(peer_lookup(&early, blocks, 2), 2);
    }
    for (uint32_t i = 0; i < HELD; i++)
        close(held[i]);
    ck_assert_uint_eq(peer_lookup(&early, blocks, 2), 2);
    peer_close(&early);
    for (int i = 0; i < 200 && fixture_fd_count(&fixture) > fds_before + 2; i++)
        sleep_ms(25);
    ck_assert_int_le(fixture_fd_count(&fixture), fds_before + 2);
    peer_check_served(fixture.socket, 9);
    fixture_stop(&fixture);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_machine");
    TCase *tests = tcase_create("machine");
    tcase_set_timeout(tests, 200);
#ifndef LARDER_SANITIZED
    tcase_add_test(tests, the_wall_clock_jumps);
    tcase_add_test(tests, killed_for_its_memory);
#endif
    tcase_add_test(tests, no_locked_memory);
    tcase_add_test(tests, ten_thousand_connects);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
