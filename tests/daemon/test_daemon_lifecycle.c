/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   larderd starts, refuses to start, and stops as larderd(8) says; larder(1) asks it what
 *         larder(1) says, with those exit codes.
 * Method: real processes on fresh directories; exit codes, messages, files.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "tests/daemon/fixture.h"
#include "tests/daemon/peer.h"

static struct fixture fixture;

/* --- larderd ---------------------------------------------------------------------------------- */

START_TEST(two_daemons_one_directory)
{
    char other[128];
    fixture_start(&fixture, NULL);
    snprintf(other, sizeof(other), "%s/other.sock", fixture.directory);
    char other_control[128];
    snprintf(other_control, sizeof(other_control), "%s/other-control.sock", fixture.directory);
    const char *const arguments[] = {"--config",         fixture.config_path, "--socket", other,
                                     "--control-socket", other_control,       NULL};
    ck_assert_int_eq(fixture_run(&fixture, arguments), 3);
    ck_assert(fixture_log_has(&fixture, "cannot start: "));
    ck_assert_int_ne(access(other, F_OK), 0);
    peer_check_served(fixture.socket, 1);
    fixture_stop(&fixture);
}
END_TEST

START_TEST(socket_in_use)
{
    char store[128];
    fixture_start(&fixture, NULL);
    snprintf(store, sizeof(store), "%s/store2", fixture.directory);
    const char *const arguments[] = {"--config", fixture.config_path, "--dir", store, NULL};
    ck_assert_int_eq(fixture_run(&fixture, arguments), 1);
    ck_assert(fixture_log_has(&fixture, "somebody listens on"));
    peer_check_served(fixture.socket, 1);
    fixture_stop(&fixture);
}
END_TEST

START_TEST(files_and_modes)
{
    struct stat status;
    fixture_prepare(&fixture, "tenant t = socket DIR/new/larder.sock\n");
    fixture_restart(&fixture);
    ck_assert_int_eq(stat(fixture.control_socket, &status), 0);
    ck_assert_uint_eq(status.st_mode & 07777, 0600);
    ck_assert_int_eq(stat(fixture.socket, &status), 0);
    ck_assert_uint_eq(status.st_mode & 07777, 0660);
    char path[128];
    snprintf(path, sizeof(path), "%s/new", fixture.directory);
    ck_assert_int_eq(stat(path, &status), 0);
    ck_assert_uint_eq(status.st_mode & 07777, 0750);
    snprintf(path, sizeof(path), "%s/store", fixture.directory);
    ck_assert_int_eq(stat(path, &status), 0);
    ck_assert_uint_eq(status.st_mode & 07777, 0700);

    /* Sockets left by a daemon that was killed are replaced. */
    fixture_kill(&fixture);
    ck_assert_int_eq(access(fixture.socket, F_OK), 0);
    fixture_restart(&fixture);
    peer_check_served(fixture.socket, 1);
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    ck_assert_int_ne(access(fixture.socket, F_OK), 0);

    /* Something else in its place is not. */
    int fd = open(fixture.socket, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    close(fd);
    const char *const arguments[] = {"--config", fixture.config_path, NULL};
    ck_assert_int_eq(fixture_run(&fixture, arguments), 1);
    ck_assert(fixture_log_has(&fixture, "is no socket"));
    ck_assert_int_eq(access(fixture.socket, F_OK), 0);
    fixture_stop(&fixture);
}
END_TEST

START_TEST(unknown_store_version)
{
    char path[128];
    char format[256] = {0};
    char after[256] = {0};
    fixture_start(&fixture, NULL);
    peer_check_served(fixture.socket, 1);
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    snprintf(path, sizeof(path), "%s/store/format", fixture.directory);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    ck_assert_int_ge(fd, 0);
    ssize_t length = read(fd, format, sizeof(format) - 1);
    ck_assert_int_gt(length, 0);
    char *version = strstr(format, "store 1");
    ck_assert_ptr_nonnull(version);
    ck_assert_int_eq(pwrite(fd, "9", 1, version + 6 - format), 1);
    const char *const arguments[] = {"--config", fixture.config_path, NULL};
    ck_assert_int_eq(fixture_run(&fixture, arguments), 4);
    version[6] = '9';
    ck_assert_int_eq(pread(fd, after, sizeof(after) - 1, 0), length);
    ck_assert_str_eq(format, after);
    ck_assert_int_ne(access(fixture.socket, F_OK), 0);
    /* Untouched: with its version back it is as it was. */
    ck_assert_int_eq(pwrite(fd, "1", 1, version + 6 - format), 1);
    close(fd);
    fixture_restart(&fixture);
    peer_check_served(fixture.socket, 1);
    fixture_stop(&fixture);
}
END_TEST

START_TEST(stop_answers_what_is_under_way)
{
    struct peer peer;
    struct block blocks[16];
    struct answer answer;
    uint64_t requests[16];
    fixture_start(&fixture, NULL);
    peer_open(&peer, fixture.socket);
    peer_chain(&peer, blocks, 16, 1);
    uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = calloc(1, bytes);
    for (uint32_t i = 0; i < 16; i++) {
        struct wire_put put;
        peer_stage(&peer, &put, &blocks[i], kv, i * 32768, LARDER_DURABLE, NULL);
        requests[i] = peer_send(&peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
    }
    free(kv);
    peer_expect(&peer, &answer, WIRE_PUT_OK, requests[0]);
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    /* Those it had read are answered; then it closed. */
    for (uint32_t i = 1; i < 16; i++) {
        peer_receive(&peer, &answer);
        if (!answer.byte_count)
            break;
        ck_assert_uint_eq(((struct wire_frame *)answer.bytes)->type, WIRE_PUT_OK);
    }
    peer_close(&peer);
    fixture_stop(&fixture);
}
END_TEST

START_TEST(no_core_dumps)
{
    char path[64];
    char line[256];
    bool found = false;
    fixture_start(&fixture, "core_dumps = off\n");
    snprintf(path, sizeof(path), "/proc/%d/limits", fixture.pid);
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof(line), file)) {
        unsigned long soft = 1;
        if (sscanf(line, "Max core file size %lu", &soft) == 1)
            found = soft == 0;
    }
    if (file)
        fclose(file);
    ck_assert(found || geteuid() != 0); /* then /proc hides it, for the same reason */
    peer_check_served(fixture.socket, 1);
    fixture_stop(&fixture);
}
END_TEST

/* In a child that is this user: connects and says what came back. */
static int connect_as(uid_t uid, const char *path)
{
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        struct wire_error error = {0};
        struct {
            struct wire_frame frame;
            struct wire_error error;
        } answer = {0};
        const struct {
            struct wire_frame frame;
            struct wire_hello hello;
        } hello = {{32, WIRE_HELLO, 0, 1}, {WIRE_MAGIC, 1, 1, 0}};
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
        if (setgroups(0, NULL) < 0 || setgid(uid) < 0 || setuid(uid) < 0 ||
            connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
            _exit(100);
        if (send(fd, &hello, sizeof(hello), MSG_NOSIGNAL) < 0 && errno != EPIPE)
            _exit(101);
        if (recv(fd, &answer, sizeof(answer), 0) <= 0)
            _exit(102);
        error = answer.error;
        _exit(answer.frame.type == WIRE_HELLO_OK ? 0
              : answer.frame.type == WIRE_ERROR  ? -error.code % 100
                                                 : 103);
    }
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

START_TEST(who_may_connect)
{
    if (geteuid() != 0) {
        fprintf(stderr, "who_may_connect: skipped, only root can be other users\n");
        return;
    }
    char path[128];
    fixture_start(&fixture, "tenant box = socket DIR/box.sock\ntenant one = uid 65533\n");
    ck_assert_int_eq(chmod(fixture.directory, 0755), 0);
    /* Who is not of the sockets' group does not get in at all. */
    ck_assert_int_eq(connect_as(1234, fixture.socket), 100);
    snprintf(path, sizeof(path), "%s/box.sock", fixture.directory);
    ck_assert_int_eq(chmod(fixture.socket, 0666), 0);
    ck_assert_int_eq(chmod(fixture.control_socket, 0666), 0);
    ck_assert_int_eq(chmod(path, 0666), 0);
    ck_assert_int_eq(connect_as(1234, fixture.socket), 0);
    ck_assert_int_eq(connect_as(65533, fixture.socket), 0);
    ck_assert_int_eq(connect_as(65534, fixture.socket), EACCES);
    ck_assert_int_eq(connect_as(65534, path), 0);
    ck_assert_int_eq(connect_as(1234, fixture.control_socket), EACCES);
    ck_assert_int_eq(connect_as(0, fixture.control_socket), 0);
    peer_check_served(fixture.socket, 1);
    fixture_stop(&fixture);
}
END_TEST

/* --- larder ----------------------------------------------------------------------------------- */

static char output[65536];

/* Runs larder with a command line; its exit code, stdout and stderr in `output`. */
static int larder(const char *format, const char *argument)
{
    char program[512];
    char line[1024];
    char arguments[256];
    fixture_program(program, "larder");
    snprintf(arguments, sizeof(arguments), format, argument);
    snprintf(line, sizeof(line), "LARDER_CONTROL_SOCKET=%s %s %s 2>&1", fixture.control_socket,
             program, arguments);
    FILE *pipe = popen(line, "r");
    ck_assert_ptr_nonnull(pipe);
    size_t got = fread(output, 1, sizeof(output) - 1, pipe);
    output[got] = 0;
    int status = pclose(pipe);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* No line for people is wider than a terminal of 100 columns. */
static void check_width(void)
{
    for (const char *line = output; *line;) {
        size_t length = strcspn(line, "\n");
        ck_assert_msg(length <= 100, "%zu columns: %.*s", length, (int)length, line);
        line += length + (line[length] == '\n');
    }
}

static bool output_has(const char *text)
{
    return strstr(output, text) != NULL;
}

START_TEST(larder_without_a_daemon)
{
    fixture_prepare(&fixture, NULL);
    ck_assert_int_eq(larder("status%s", ""), 2);
    ck_assert(output_has("no larderd at"));
    ck_assert_int_eq(larder("ls --socket %s", "/nonexistent/x.sock"), 2);
    ck_assert(output_has("/nonexistent/x.sock"));
    ck_assert_int_eq(larder("%s", "frobnicate"), 2);
    ck_assert_int_eq(larder("%s", "show"), 2);
    ck_assert_int_eq(larder("%s", "status more"), 2);
    ck_assert_int_eq(larder("%s", "ls -n 0"), 2);
    ck_assert_int_eq(larder("%s", "--help"), 0);
    check_width();
    ck_assert_int_eq(larder("%s", "ls --help"), 0);
    ck_assert_int_eq(larder("recipe %s", "ls"), 0);
    ck_assert(output_has("exact"));
    ck_assert_int_eq(larder("recipe show %s", "exact"), 0);
    ck_assert_int_eq(larder("recipe show %s", "nonsense"), 2);
    ck_assert_int_eq(larder("recipe ls --json%s", ""), 0);
    fixture_stop(&fixture);
}
END_TEST

START_TEST(larder_looks_in)
{
    struct peer peer;
    struct block blocks[40];
    char key[65];
    fixture_start(&fixture, NULL);
    peer_open(&peer, fixture.socket);
    peer_chain(&peer, blocks, 40, 1);
    peer_put_chain(&peer, blocks, 40, 1, LARDER_DURABLE);

    ck_assert_int_eq(larder("%s", "status"), 0);
    ck_assert(output_has("healthy"));
    ck_assert(output_has("entries     40"));
    check_width();
    ck_assert_int_eq(larder("%s", "status --json"), 0);
    ck_assert(output_has("\"entries_durable\": 40"));
    ck_assert(output_has("\"read_only\": false"));
    ck_assert_int_eq(larder("%s", "models"), 0);
    ck_assert(output_has("peer"));
    check_width();
    ck_assert_int_eq(larder("%s", "models --json"), 0);
    ck_assert_int_eq(larder("%s", "tenants"), 0);
    ck_assert(output_has("uid-"));
    check_width();
    ck_assert_int_eq(larder("%s", "tenants --json"), 0);
    /* A tenant's key is its secret. */
    char secret[65];
    larder_hex(secret, peer.hello.tenant_key, 32);
    ck_assert(!output_has(secret));

    ck_assert_int_eq(larder("%s", "ls"), 0);
    check_width();
    larder_hex(key, blocks[17].key.bytes, 6);
    ck_assert(output_has(key));
    ck_assert_int_eq(larder("%s", "ls -n 3 --json"), 0);
    ck_assert_int_eq(larder("%s", "ls --tenant nobody"), 0);
    ck_assert(!output_has("peer"));

    larder_hex(key, blocks[17].key.bytes, 32);
    ck_assert_int_eq(larder("show %s", key), 0);
    ck_assert(output_has(key));
    check_width();
    key[16] = 0;
    ck_assert_int_eq(larder("show %s", key), 0);
    ck_assert_int_eq(larder("show --json %s", key), 0);
    ck_assert_int_eq(larder("verify %s", key), 0);
    ck_assert(output_has("1 good"));

    ck_assert_int_eq(larder("%s", "verify"), 0);
    ck_assert(output_has("40 good, 0 corrupt"));
    ck_assert_int_eq(larder("%s", "verify --json"), 0);
    ck_assert(output_has("\"good\": 40"));
    ck_assert_int_eq(larder("rm %s", key), 0);
    ck_assert(output_has("removed 23 entries"));
    ck_assert_int_eq(larder("show %s", key), 1);
    ck_assert_int_eq(larder("rm %s", key), 1);
    ck_assert_uint_eq(peer_lookup(&peer, blocks, 40), 17);
    peer_close(&peer);
    fixture_stop(&fixture);
}
END_TEST

START_TEST(larder_takes_prefixes)
{
    struct peer peer;
    struct block blocks[40];
    fixture_start(&fixture, NULL);
    peer_open(&peer, fixture.socket);
    peer_chain(&peer, blocks, 40, 1);
    peer_put_chain(&peer, blocks, 40, 1, LARDER_CACHED);
    /* Among 40 keys two share their first digit. */
    uint32_t seen[16] = {0};
    char digit[2] = {0};
    for (uint32_t i = 0; i < 40 && !digit[0]; i++) {
        uint32_t high = blocks[i].key.bytes[0] >> 4;
        if (seen[high]++)
            digit[0] = "0123456789abcdef"[high];
    }
    ck_assert_int_eq(larder("show %s", digit), 2);
    ck_assert(output_has("is ambiguous"));
    ck_assert_int_eq(larder("show %s", "xyz"), 2);
    ck_assert(output_has("is no key"));
    ck_assert_int_eq(larder("show %s", "00000000000000000000"), 1);
    peer_close(&peer);
    fixture_stop(&fixture);
}
END_TEST

/* A flipped bit on disk: verify finds it, says so by its exit code, and the entry is gone. */
START_TEST(larder_finds_damage)
{
    struct peer peer;
    struct block blocks[4];
    char path[160];
    fixture_start(&fixture, NULL);
    peer_open(&peer, fixture.socket);
    peer_chain(&peer, blocks, 4, 1);
    peer_put_chain(&peer, blocks, 4, 1, LARDER_DURABLE);
    ck_assert_int_eq(larder("%s", "ls --json"), 0);
    const char *at = strstr(output, "\"depth\":3");
    ck_assert_ptr_nonnull(at);
    const char *segment = strstr(at, "\"segment\":");
    const char *offset = strstr(at, "\"segment_offset\":");
    ck_assert(segment && offset);
    snprintf(path, sizeof(path), "%s/store/segments/%08d.seg", fixture.directory,
             atoi(segment + strlen("\"segment\":")));
    int fd = open(path, O_RDWR | O_CLOEXEC);
    ck_assert_msg(fd >= 0, "%s: %s", path, strerror(errno));
    off_t where = atol(offset + strlen("\"segment_offset\":")) + 2000;
    uint8_t byte;
    ck_assert_int_eq(pread(fd, &byte, 1, where), 1);
    byte ^= 4;
    ck_assert_int_eq(pwrite(fd, &byte, 1, where), 1);
    fsync(fd);
    close(fd);
    ck_assert_int_eq(larder("%s", "verify"), 1);
    ck_assert(output_has("1 corrupt"));
    ck_assert_uint_eq(peer_lookup(&peer, blocks, 4), 3);
    ck_assert_int_eq(larder("%s", "verify"), 0);
    ck_assert_int_eq(larder("%s", "status --json"), 0);
    ck_assert(output_has("\"corrupt\": 1"));
    peer_close(&peer);
    fixture_stop(&fixture);
}
END_TEST

/* One PUT beside what is stored; its answer. */
static struct wire_put_ok put_beside(struct peer *peer, const struct block *block,
                                     const uint8_t *kv, const char *recipe)
{
    struct wire_put put;
    struct answer answer;
    peer_stage(peer, &put, block, kv, 0, LARDER_DURABLE, recipe);
    put.flags = WIRE_PUT_BESIDE;
    uint64_t request = peer_send(peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
    return *(const struct wire_put_ok *)peer_expect(peer, &answer, WIRE_PUT_OK, request);
}

START_TEST(larder_names_variants)
{
    struct peer peer;
    struct block blocks[2];
    uint8_t kv[1 << 16];
    fixture_start(&fixture, NULL);
    peer_open(&peer, fixture.socket);
    peer_chain(&peer, blocks, 2, 1);
    ck_assert_uint_le(peer_kv_bytes(&peer, blocks[0].token_count), sizeof(kv));
    peer_fill_kv(kv, peer_kv_bytes(&peer, blocks[0].token_count), 1);
    struct wire_put_ok ok;
    ck_assert_int_eq(peer_put(&peer, &blocks[0], kv, LARDER_DURABLE, "raw", &ok), 0);
    peer_put_chain(&peer, blocks, 2, 1, LARDER_DURABLE);
    ck_assert_int_eq(peer_put(&peer, &blocks[0], kv, LARDER_DURABLE, "exact", &ok), 0);
    ck_assert_uint_eq(ok.existed, 1);
    ck_assert_uint_eq(put_beside(&peer, &blocks[0], kv, "exact").existed, 0);
    ck_assert_uint_eq(put_beside(&peer, &blocks[0], kv, "exact").existed, 1);
    /* Two of one key are no two keys. */
    char key[65];
    larder_hex(key, blocks[0].key.bytes, 32);
    ck_assert_int_eq(larder("show %.10s", key), 0);
    ck_assert(output_has("variant 0 "));
    ck_assert(output_has("variant 1 "));
    ck_assert_int_eq(larder("show %.10s --json", key), 0);
    ck_assert(output_has("\"variants\": 2"));
    ck_assert_int_eq(larder("%s", "verify"), 0);
    ck_assert(output_has("3 good"));
    ck_assert_int_eq(larder("rm --variant 5 %.10s", key), 1);
    ck_assert_int_ne(larder("rm --variant 8 %.10s", key), 0);
    ck_assert_int_eq(larder("rm --variant 0 %.10s", key), 0);
    ck_assert_uint_eq(peer_lookup(&peer, blocks, 2), 2);
    ck_assert_int_ne(larder("rm --variant 1 %.10s", key), 0); /* the only one */
    ck_assert_int_eq(larder("rm %.10s", key), 0);
    ck_assert(output_has("removed 2"));
    ck_assert_uint_eq(peer_lookup(&peer, blocks, 2), 0);
    peer_close(&peer);
    fixture_stop(&fixture);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_lifecycle");
    TCase *tests = tcase_create("lifecycle");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, two_daemons_one_directory);
    tcase_add_test(tests, socket_in_use);
    tcase_add_test(tests, files_and_modes);
    tcase_add_test(tests, unknown_store_version);
    tcase_add_test(tests, stop_answers_what_is_under_way);
    tcase_add_test(tests, no_core_dumps);
    tcase_add_test(tests, who_may_connect);
    tcase_add_test(tests, larder_without_a_daemon);
    tcase_add_test(tests, larder_looks_in);
    tcase_add_test(tests, larder_takes_prefixes);
    tcase_add_test(tests, larder_finds_damage);
    tcase_add_test(tests, larder_names_variants);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
