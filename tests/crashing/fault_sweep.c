/* SPDX-License-Identifier: Apache-2.0 */
/* fault_sweep.c - a real larderd, in which one thing goes wrong in each life: system call number N
 * of a kind fails (strace injects it), or kills it; or allocation N fails (larderd-failing). N goes
 * from 1 until a life is over before it came to it.
 *
 * A life is a start, a few requests of an engine, and a stop. strace counts calls for each thread,
 * so system calls are swept from the start on, and once more from when it serves. larderd may
 * refuse to start, answer with errors, or end with an exit code; it may not crash, hang, or leak
 * (under a sanitizer). Then a life in which nothing fails must find everything that was
 * acknowledged, exactly, and nothing that was removed.
 *
 * Faults are in store files, descriptors, memory and threads; those of eventfds, which no disk
 * makes, are left out.
 *
 * Usage: larder-fault-sweep [--every K] [--only NAME] [--list] [--verbose]
 *   --every K: only each K-th N. --verbose: why starts were refused. Exit 0: no bugs; 77: strace
 * cannot trace here. */
#include <assert.h>
#include <dirent.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "tests/golden/chains.h"

#define SKIPPED       77
#define NUMBERS_MAX   3000u
#define HELD_MAX      12u
#define ATTACH_MS     5000
#define PUTS_A_LIFE   3
#define TOKENS        40u
#define TOKENS_BEHIND 16u /* what a removal leaves */

static const struct fault {
    const char *name;
    const char *call; /* NULL: an allocation */
    const char *what; /* for strace */
    const char *io;
    enum {
        PLAIN,
        SMALL_FILES, /* only of format, tenants, the configuration: others are no disk's */
        MAY_EVICT,   /* a full disk, or no file to be had, makes room */
    } special;
} faults[] = {
    {"allocation", NULL, NULL, "threads", PLAIN},
    {"kill-pwrite", "pwrite64", "signal=KILL", "threads", PLAIN},
    {"kill-write", "write", "signal=KILL", "threads", PLAIN},
    {"kill-writev", "writev", "signal=KILL", "threads", PLAIN},
    {"kill-fdatasync", "fdatasync", "signal=KILL", "threads", PLAIN},
    {"kill-fsync", "fsync", "signal=KILL", "threads", PLAIN},
    {"kill-fallocate", "fallocate", "signal=KILL", "threads", PLAIN},
    {"kill-ftruncate", "ftruncate", "signal=KILL", "threads", PLAIN},
    {"kill-rename", "rename,renameat", "signal=KILL", "threads", PLAIN},
    {"kill-unlink", "unlink,unlinkat", "signal=KILL", "threads", PLAIN},
    {"kill-uring", "io_uring_enter", "signal=KILL", "uring", PLAIN},
    {"openat-EMFILE", "openat", "error=EMFILE", "threads", MAY_EVICT},
    {"openat-EIO", "openat", "error=EIO", "threads", PLAIN},
    {"mmap-ENOMEM", "mmap", "error=ENOMEM", "threads", PLAIN},
    {"mprotect-ENOMEM", "mprotect", "error=ENOMEM", "threads", PLAIN},
    {"read-EIO", "read", "error=EIO", "threads", SMALL_FILES},
    {"read-EINTR", "read", "error=EINTR", "threads", PLAIN},
    {"write-ENOSPC", "write", "error=ENOSPC", "threads", SMALL_FILES},
    {"write-EINTR", "write", "error=EINTR", "threads", SMALL_FILES},
    {"pread-EIO", "pread64", "error=EIO", "threads", PLAIN},
    {"pread-EINTR", "pread64", "error=EINTR", "threads", PLAIN},
    {"pwrite-EIO", "pwrite64", "error=EIO", "threads", PLAIN},
    {"pwrite-ENOSPC", "pwrite64", "error=ENOSPC", "threads", MAY_EVICT},
    {"pwrite-EINTR", "pwrite64", "error=EINTR", "threads", PLAIN},
    {"writev-EIO", "writev", "error=EIO", "threads", PLAIN},
    {"fdatasync-EIO", "fdatasync", "error=EIO", "threads", PLAIN},
    {"fsync-EIO", "fsync", "error=EIO", "threads", PLAIN},
    {"fallocate-ENOSPC", "fallocate", "error=ENOSPC", "threads", MAY_EVICT},
    {"fallocate-EOPNOTSUPP", "fallocate", "error=EOPNOTSUPP", "threads", PLAIN},
    {"ftruncate-EIO", "ftruncate", "error=EIO", "threads", PLAIN},
    {"mkdir-ENOSPC", "mkdir", "error=ENOSPC", "threads", PLAIN},
    {"rename-EIO", "rename,renameat", "error=EIO", "threads", PLAIN},
    {"unlink-EIO", "unlink,unlinkat", "error=EIO", "threads", PLAIN},
    {"getdents-EIO", "getdents64", "error=EIO", "threads", PLAIN},
    {"stat-EIO", "newfstatat,fstatfs,statx", "error=EIO", "threads", PLAIN},
    {"fcntl-EAGAIN", "fcntl", "error=EAGAIN", "threads", PLAIN},
    {"getrandom-EINTR", "getrandom", "error=EINTR", "threads", PLAIN},
    {"memfd-EMFILE", "memfd_create", "error=EMFILE", "threads", PLAIN},
    {"clone-EAGAIN", "clone,clone3,fork,vfork", "error=EAGAIN", "threads", PLAIN},
    {"wait-EINTR", "wait4,waitid", "error=EINTR", "threads", PLAIN},
    {"socket-EMFILE", "socket", "error=EMFILE", "threads", PLAIN},
    {"bind-EADDRINUSE", "bind,listen", "error=EADDRINUSE", "threads", PLAIN},
    {"accept-EMFILE", "accept4", "error=EMFILE", "threads", PLAIN},
    {"accept-ECONNABORTED", "accept4", "error=ECONNABORTED", "threads", PLAIN},
    {"recvmsg-ECONNRESET", "recvmsg", "error=ECONNRESET", "threads", PLAIN},
    {"recvmsg-EINTR", "recvmsg", "error=EINTR", "threads", PLAIN},
    {"sendmsg-EPIPE", "sendmsg", "error=EPIPE", "threads", PLAIN},
    {"sendmsg-EINTR", "sendmsg", "error=EINTR", "threads", PLAIN},
    {"sendmsg-ENOBUFS", "sendmsg", "error=ENOBUFS", "threads", PLAIN},
    {"epoll_ctl-ENOMEM", "epoll_ctl", "error=ENOMEM", "threads", PLAIN},
    {"epoll_wait-EINTR", "epoll_wait", "error=EINTR", "threads", PLAIN},
    {"eventfd-EMFILE", "eventfd2", "error=EMFILE", "threads", PLAIN},
    {"uring_setup-EPERM", "io_uring_setup", "error=EPERM", "auto", PLAIN},
    {"uring_setup-ENOMEM", "io_uring_setup", "error=ENOMEM", "auto", PLAIN},
    {"uring-EINTR", "io_uring_enter", "error=EINTR", "uring", PLAIN},
    {"uring-EAGAIN", "io_uring_enter", "error=EAGAIN", "uring", PLAIN},
    {"uring-EIO", "io_uring_enter", "error=EIO", "uring", PLAIN},
    {"uring-EPERM", "io_uring_enter", "error=EPERM", "uring", PLAIN},
};

static const char *const small_files[] = {
    "larderd.conf",      "store/format",           "store/format.new",   "store/tenants",
    "store/tenants.new", "store/tenants.copy.new", "store/tenants.copy",
};
#define STRACE_ARGUMENTS 32

static bool verbose;

/* A chain and what is known of it. */
struct held {
    struct chain chain;
    uint32_t must; /* tokens acknowledged durable */
    bool removed;  /* acknowledged: no more than TOKENS_BEHIND are there */
    bool unknown;  /* a removal failed */
};

struct sweep {
    const struct fault *fault;
    struct fixture fixture;
    struct held held[HELD_MAX]; /* the oldest first */
    uint32_t count;
    uint32_t next_number;
    char trace[96];
    uint64_t lives;
    uint64_t refused; /* starts */
    uint64_t ended;   /* after it served */
    uint64_t bugs;
};

static void __attribute__((format(printf, 3, 4)))
bug(struct sweep *sweep, uint64_t number, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s, number %llu: ", sweep->fault->name, (unsigned long long)number);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    sweep->bugs++;
}

/* --- a life ----------------------------------------------------------------------------------- */

static void hold(struct sweep *sweep, const struct held *held)
{
    if (sweep->count == HELD_MAX)
        memmove(sweep->held, sweep->held + 1, sizeof(*sweep->held) * --sweep->count);
    sweep->held[sweep->count++] = *held;
}

/* Whatever fails here is an answer; wrong bytes are not. */
static void ask(struct sweep *sweep, uint64_t number)
{
    for (int i = 0; i < PUTS_A_LIFE; i++) {
        struct held fresh = {.chain = {.tenant = sweep->next_number % 5 == 0,
                                       .model = sweep->next_number % 2,
                                       .number = sweep->next_number}};
        sweep->next_number++;
        if (chain_put(&sweep->fixture, &fresh.chain, TOKENS) == 0)
            fresh.must = TOKENS;
        hold(sweep, &fresh);
    }
    char digest[CHAIN_DIGEST_TEXT];
    for (uint32_t i = 0; i < 2 && i < sweep->count; i++) {
        const struct held *held = &sweep->held[i];
        int64_t got = chain_get(&sweep->fixture, &held->chain, TOKENS, digest);
        if (got == LARDER_ECORRUPT)
            bug(sweep, number, "chain %u: wrong bytes", held->chain.number);
        if (got > TOKENS_BEHIND && held->removed)
            bug(sweep, number, "chain %u: came back", held->chain.number);
    }
    struct held *middle = &sweep->held[sweep->count / 2];
    if (middle->must == TOKENS) {
        middle->must = 0;
        middle->removed = chain_remove(&sweep->fixture, &middle->chain, 2 * TOKENS_BEHIND) == 0;
        middle->unknown = !middle->removed;
    }
}

/* Nothing fails now. */
static void check(struct sweep *sweep, uint64_t number)
{
    char digest[CHAIN_DIGEST_TEXT];
    sweep->fixture.program = NULL;
    sweep->fixture.prefix = NULL;
    int code = fixture_try_restart(&sweep->fixture);
    if (code != 0) {
        bug(sweep, number, "larderd does not start afterwards: %d", code);
        exit(1);
    }
    for (uint32_t i = 0; i < sweep->count; i++) {
        struct held *held = &sweep->held[i];
        int64_t got = chain_get(&sweep->fixture, &held->chain, TOKENS, digest);
        /* The sockets of tenants come behind the one that a start waits for. */
        for (int again = 0; got == LARDER_EDOWN && i == 0 && again < 100; again++) {
            usleep(10000);
            got = chain_get(&sweep->fixture, &held->chain, TOKENS, digest);
        }
        if (got == LARDER_ECORRUPT)
            bug(sweep, number, "chain %u: wrong bytes", held->chain.number);
        else if (got < 0)
            bug(sweep, number, "chain %u: error %lld", held->chain.number, (long long)got);
        else if (got < (int64_t)held->must && sweep->fault->special != MAY_EVICT)
            bug(sweep, number, "chain %u: %lld of %u tokens", held->chain.number, (long long)got,
                held->must);
        else if (got > TOKENS_BEHIND && held->removed)
            bug(sweep, number, "chain %u: came back", held->chain.number);
        held->must = held->unknown || held->removed ? 0 : (uint32_t)(got > 0 ? got : 0);
    }
    code = fixture_terminate(&sweep->fixture);
    if (code != 0)
        bug(sweep, number, "the next life ends with %d", code);
}

/* Did it come to what was to fail? */
static bool was_met(const struct sweep *sweep)
{
    char line[1024];
    bool met = false;
    const char *path = sweep->fault->call ? sweep->trace : sweep->fixture.log_path;
    FILE *file = fopen(path, "re");
    while (file && !met && fgets(line, sizeof(line), file))
        met = strstr(line, "INJECTED") || strstr(line, "killed by SIGKILL");
    if (file)
        fclose(file);
    return met;
}

static void judge_end(struct sweep *sweep, uint64_t number, int code)
{
    bool is_killed = sweep->fault->call && strstr(sweep->fault->what, "KILL");
    if (code < 0 && !(is_killed && code == -SIGKILL))
        bug(sweep, number, "larderd ended by signal %d", -code);
    /* What a sanitizer found. */
    if (code == 23 || fixture_log_has(&sweep->fixture, "ERROR: ") ||
        fixture_log_has(&sweep->fixture, "runtime error"))
        bug(sweep, number, "a sanitizer's finding: exit code %d", code);
}

/* strace on the process, every thread of it; returns when all are traced. */
static pid_t attach(struct sweep *sweep, const char **argv, size_t count)
{
    char path[64], line[128], pid[16];
    snprintf(pid, sizeof(pid), "%d", (int)sweep->fixture.pid);
    argv[count++] = "-p";
    argv[count] = pid;
    pid_t tracer = fork();
    assert(tracer >= 0);
    if (tracer == 0) {
        execvp(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    /* The last thread of the list is the last that is attached. */
    for (int left = ATTACH_MS; left > 0; left--) {
        usleep(1000);
        uint32_t traced = 0, threads = 0;
        snprintf(path, sizeof(path), "/proc/%s/task", pid);
        DIR *folder = opendir(path);
        for (const struct dirent *task; folder && (task = readdir(folder)) != NULL;) {
            char status[400];
            int tracer_pid = 0;
            snprintf(status, sizeof(status), "%s/%s/status", path, task->d_name);
            FILE *file = task->d_name[0] == '.' ? NULL : fopen(status, "re");
            while (file && fgets(line, sizeof(line), file))
                sscanf(line, "TracerPid: %d", &tracer_pid);
            if (file)
                fclose(file);
            threads += file != NULL;
            traced += tracer_pid != 0;
        }
        if (folder)
            closedir(folder);
        if (threads > 0 && traced == threads)
            break;
    }
    return tracer;
}

/* Starts it so that number `number` of what the fault is about fails. How the start ended. */
static int start_failing(struct sweep *sweep, uint64_t number, bool serving, pid_t *tracer)
{
    const struct fault *fault = sweep->fault;
    char trace[128], inject[160], text[32];
    *tracer = 0;
    unlink(sweep->trace);
    unlink(sweep->fixture.log_path);
    if (!fault->call) {
        snprintf(text, sizeof(text), "%llu", (unsigned long long)number);
        sweep->fixture.program = "tests/larderd-failing";
        setenv("LARDER_FAIL_ALLOCATION", text, 1);
        int code = fixture_try_restart(&sweep->fixture);
        unsetenv("LARDER_FAIL_ALLOCATION");
        return code;
    }
    snprintf(trace, sizeof(trace), "trace=%s", fault->call);
    snprintf(inject, sizeof(inject), "inject=%s:%s:when=%llu", fault->call, fault->what,
             (unsigned long long)number);
    const char *argv[STRACE_ARGUMENTS] = {"strace", "-f",  "-qq", "-o",  sweep->trace,
                                          "-e",     trace, "-e",  inject};
    size_t count = 9;
    char paths[LARDER_COUNT_OF(small_files)][128];
    for (size_t i = 0; fault->special == SMALL_FILES && i < LARDER_COUNT_OF(small_files); i++) {
        snprintf(paths[i], sizeof(paths[i]), "%s/%s", sweep->fixture.directory, small_files[i]);
        argv[count++] = "-P";
        argv[count++] = paths[i];
    }
    if (!serving) {
        argv[count++] = "-D"; /* the process stays the one that is waited for */
        argv[count++] = "--seccomp-bpf";
        sweep->fixture.prefix = argv;
    }
    int code = fixture_try_restart(&sweep->fixture);
    sweep->fixture.prefix = NULL;
    if (serving && code == 0)
        *tracer = attach(sweep, argv, count);
    return code;
}

/* Why a start was refused. */
static void show_last_line(const struct sweep *sweep, uint64_t number, int code)
{
    char line[400] = "", last[400] = "(nothing)\n";
    FILE *file = fopen(sweep->fixture.log_path, "re");
    while (file && fgets(line, sizeof(line), file))
        memcpy(last, line, sizeof(last));
    if (file)
        fclose(file);
    fprintf(stderr, "%s, number %llu: %d: %s", sweep->fault->name, (unsigned long long)number, code,
            last);
}

enum phase {
    FIRST_START, /* there is no store yet */
    LATER_START,
    SERVING, /* strace from when it serves */
    PHASES,
};

static bool live(struct sweep *sweep, uint64_t number, enum phase phase)
{
    if (phase == FIRST_START) {
        char command[160];
        snprintf(command, sizeof(command), "rm -rf %s/store", sweep->fixture.directory);
        int rc = system(command);
        assert(rc == 0);
        sweep->count = 0;
    }
    pid_t tracer;
    int code = start_failing(sweep, number, phase == SERVING, &tracer);
    sweep->lives++;
    sweep->refused += code != 0;
    if (code != 0 && verbose)
        show_last_line(sweep, number, code);
    if (code == 0) {
        ask(sweep, number);
        code = fixture_terminate(&sweep->fixture);
        sweep->ended += code != 0;
    }
    if (tracer)
        waitpid(tracer, NULL, 0);
    judge_end(sweep, number, code);
    bool met = was_met(sweep);
    uint64_t bugs = sweep->bugs;
    check(sweep, number);
    if (sweep->bugs > bugs)
        fprintf(stderr, "  in %s\n", sweep->fixture.directory);
    return met;
}

/* Calls that the loader makes before larderd's own code runs are not larderd's to bear. */
static uint64_t loader_calls(struct sweep *sweep)
{
    char program[512], command[800];
    fixture_program(program, "larderd");
    snprintf(command, sizeof(command), "strace -qq -o %s -e trace=%s %s --version >%s.out",
             sweep->trace, sweep->fault->call, program, sweep->trace);
    int rc = system(command);
    assert(rc == 0);
    FILE *file = fopen(sweep->trace, "re");
    assert(file);
    uint64_t calls = 0;
    for (int c; (c = getc(file)) != EOF;)
        calls += c == '\n';
    fclose(file);
    return calls;
}

static uint64_t run_fault(const struct fault *fault, uint64_t every)
{
    struct sweep sweep = {.fault = fault, .next_number = 1};
    char config[256];
    snprintf(config, sizeof(config), "%sio = %s\nhost_bytes = 16M\nsegment_bytes = 4M\n",
             CHAINS_CONFIG, fault->io);
    fixture_prepare(&sweep.fixture, config);
    snprintf(sweep.trace, sizeof(sweep.trace), "%s/trace", sweep.fixture.directory);
    uint64_t loaded = fault->call && fault->special != SMALL_FILES ? loader_calls(&sweep) : 0;
    for (int phase = FIRST_START; phase < (fault->call ? PHASES : SERVING); phase++) {
        uint64_t number = phase == SERVING ? 1 : loaded + 1;
        while (number <= NUMBERS_MAX && live(&sweep, number, (enum phase)phase))
            number += every;
    }
    printf("%-22s lives %4llu, starts refused %4llu, ended early %4llu, bugs %llu\n", fault->name,
           (unsigned long long)sweep.lives, (unsigned long long)sweep.refused,
           (unsigned long long)sweep.ended, (unsigned long long)sweep.bugs);
    fflush(stdout);
    if (sweep.bugs == 0)
        fixture_stop(&sweep.fixture);
    return sweep.bugs;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"every", required_argument, NULL, 'e'},
        {"only", required_argument, NULL, 'o'},
        {"list", no_argument, NULL, 'l'},
        {"verbose", no_argument, NULL, 'v'},
        {0},
    };
    uint64_t every = 1, bugs = 0;
    const char *only = "";
    bool list = false;
    for (int what; (what = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (what == '?')
            return 2;
        every = what == 'e' ? strtoull(optarg, NULL, 10) : every;
        only = what == 'o' ? optarg : only;
        list = list || what == 'l';
        verbose = verbose || what == 'v';
    }
    if (every == 0)
        return 2;
    chain_timeout_ms = 5000;
    if (!list && system("strace -qq -o /dev/null -e inject=getpid:error=EPERM true") != 0) {
        printf("strace cannot trace here\n");
        return SKIPPED;
    }
    for (size_t i = 0; i < LARDER_COUNT_OF(faults); i++) {
        if (strncmp(faults[i].name, only, strlen(only)) != 0)
            continue;
        if (list)
            printf("%s\n", faults[i].name);
        else
            bugs += run_fault(&faults[i], every);
    }
    return bugs == 0 ? 0 : 1;
}
