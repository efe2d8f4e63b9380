/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   the service manager learns when larderd can be used, that it lives, reloads and stops;
 *         and without a manager, or with one that does not listen, larderd runs as ever.
 * Method: real processes; the test is the manager and reads the datagrams. At READY=1 it connects
 *         at once, without a second try.
 */
#include <check.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/notify.h"
#include "tests/daemon/fixture.h"
#include "tests/daemon/peer.h"

/* With sanitizers, on a busy machine. */
#define WAIT_S 30

static struct fixture fixture;
static int manager = -1;
static char text[NOTIFY_BYTES_MAX];

static void setup(void)
{
    fixture_prepare(&fixture, NULL);
}

static void teardown(void)
{
    fixture_stop(&fixture);
    if (manager >= 0)
        close(manager);
    manager = -1;
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
}

/* Listens, and names itself to the daemon. */
static void manage(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    memcpy(address.sun_path, name, length);
    if (name[0] == '@')
        address.sun_path[0] = 0;
    manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(manager, 0);
    socklen_t bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    ck_assert_int_eq(bind(manager, (struct sockaddr *)&address, bytes), 0);
    const struct timeval limit = {.tv_sec = WAIT_S};
    setsockopt(manager, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setenv("NOTIFY_SOCKET", name, 1);
}

static void manage_by_path(void)
{
    char name[100];
    snprintf(name, sizeof(name), "%s/notify", fixture.directory);
    manage(name);
}

/* The next datagram that is no sign of life. */
static void hear(const char *beginning)
{
    do {
        ssize_t got = recv(manager, text, sizeof(text) - 1, 0);
        ck_assert_msg(got > 0, "nothing was told, not '%s'", beginning);
        text[got] = 0;
    } while (strcmp(text, "WATCHDOG=1") == 0);
    ck_assert_msg(strncmp(text, beginning, strlen(beginning)) == 0, "'%s' was told, not '%s'", text,
                  beginning);
}

static void check_life_of_a_service(void)
{
    fixture_restart(&fixture);
    hear("STATUS=Opens ");
    hear("READY=1\nSTATUS=Serves ");
    ck_assert_ptr_nonnull(strstr(text, fixture.socket));
    kill(fixture.pid, SIGHUP);
    hear("RELOADING=1\nMONOTONIC_USEC=");
    hear("READY=1\n");
    kill(fixture.pid, SIGTERM);
    hear("STOPPING=1\nSTATUS=Stops");
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
}

START_TEST(manager_at_a_path)
{
    manage_by_path();
    check_life_of_a_service();
}
END_TEST

START_TEST(manager_at_an_abstract_address)
{
    char name[64];
    snprintf(name, sizeof(name), "@larder-test-%d", (int)getpid());
    manage(name);
    check_life_of_a_service();
}
END_TEST

/* In a process of its own: fixture_restart() waits until somebody listens. */
START_TEST(ready_when_it_can_be_used)
{
    manage_by_path();
    pid_t client = fork();
    ck_assert_int_ge(client, 0);
    if (client == 0) {
        struct peer peer;
        hear("STATUS=Opens ");
        hear("READY=1\n");
        peer_connect(&peer, fixture.socket);
        peer_say_hello(&peer);
        peer_close(&peer);
        _exit(0);
    }
    fixture_restart(&fixture);
    int status;
    ck_assert_int_eq(waitpid(client, &status, 0), client);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
END_TEST

START_TEST(cannot_start)
{
    char path[128];
    manage_by_path();
    snprintf(path, sizeof(path), "%s/none/store", fixture.directory);
    const char *const arguments[] = {"--config", fixture.config_path, "--dir", path, NULL};
    ck_assert_int_eq(fixture_run(&fixture, arguments), 1);
    hear("STATUS=Opens ");
    hear("STATUS=Cannot start: ");
}
END_TEST

/* Signs of life in so many ms. */
static int count_signs(int ms)
{
    int count = 0;
    struct timespec wait = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&wait, NULL);
    ssize_t got;
    while ((got = recv(manager, text, sizeof(text) - 1, MSG_DONTWAIT)) > 0) {
        text[got] = 0;
        count += strcmp(text, "WATCHDOG=1") == 0;
    }
    return count;
}

START_TEST(signs_of_life)
{
    manage_by_path();
    setenv("WATCHDOG_USEC", "600000", 1);
    fixture_restart(&fixture);
    ck_assert_int_ge(count_signs(3000), 4);
    /* A loop that stands still gives none. */
    kill(fixture.pid, SIGSTOP);
    count_signs(200);
    ck_assert_int_eq(count_signs(1500), 0);
    kill(fixture.pid, SIGCONT);
    ck_assert_int_ge(count_signs(3000), 4);
}
END_TEST

START_TEST(signs_of_life_of_another)
{
    manage_by_path();
    setenv("WATCHDOG_USEC", "200000", 1);
    setenv("WATCHDOG_PID", "1", 1);
    fixture_restart(&fixture);
    ck_assert_int_eq(count_signs(1000), 0);
}
END_TEST

START_TEST(no_manager)
{
    static const char *const names[] = {"",         "/none/such", "@larder-test-nobody",
                                        "relative", "/",          "vsock:2:1"};
    char longer[200];
    memset(longer, 'x', sizeof(longer) - 1);
    longer[0] = '/';
    longer[sizeof(longer) - 1] = 0;
    for (size_t i = 0; i <= sizeof(names) / sizeof(names[0]); i++) {
        setenv("NOTIFY_SOCKET", i < sizeof(names) / sizeof(names[0]) ? names[i] : longer, 1);
        setenv("WATCHDOG_USEC", i % 2 ? "100000" : "many", 1);
        fixture_restart(&fixture);
        peer_check_served(fixture.socket, 1);
        ck_assert_int_eq(fixture_terminate(&fixture), 0);
        ck_assert_int_eq(fixture_log_has(&fixture, "service manager"), i > 0);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_notify");
    TCase *tests = tcase_create("notify");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, manager_at_a_path);
    tcase_add_test(tests, manager_at_an_abstract_address);
    tcase_add_test(tests, ready_when_it_can_be_used);
    tcase_add_test(tests, cannot_start);
    tcase_add_test(tests, signs_of_life);
    tcase_add_test(tests, signs_of_life_of_another);
    tcase_add_test(tests, no_manager);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
