/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/daemon/fixture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Starting and stopping, with sanitizers, on a busy machine. */
#define WAIT_MS 30000

static void die(const char *what, const char *name)
{
    fprintf(stderr, "fixture: %s: %s: %s\n", what, name, strerror(errno));
    abort();
}

static void sleep_ms(int ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

void fixture_program(char out[512], const char *name)
{
    const char *build = getenv("LARDER_BUILD");
    char self[256] = {0};
    if (build) {
        snprintf(out, 512, "%.200s/%s", build, name);
        return;
    }
    if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0)
        die("readlink", "/proc/self/exe");
    *strrchr(self, '/') = 0;
    snprintf(out, 512, "%s/../%s", self, name);
}

/* Copies a configuration; "DIR/" becomes the directory. */
static void write_config(FILE *file, const struct fixture *fixture, const char *config)
{
    for (const char *at = config; *at;) {
        const char *mark = strstr(at, "DIR/");
        if (!mark) {
            fputs(at, file);
            return;
        }
        fprintf(file, "%.*s%s/", (int)(mark - at), at, fixture->directory);
        at = mark + strlen("DIR/");
    }
}

/* A default stands only where the test says nothing of that key. */
static void write_default(FILE *file, const char *config, const char *key, const char *value)
{
    size_t length = strlen(key);
    for (const char *at = config; (at = strstr(at, key)); at += length) {
        bool starts_line = at == config || at[-1] == '\n';
        if (starts_line && (at[length] == ' ' || at[length] == '='))
            return;
    }
    fprintf(file, "%s = %s\n", key, value);
}

void fixture_prepare(struct fixture *fixture, const char *config)
{
    memset(fixture, 0, sizeof(*fixture));
    config = config ? config : "";
    const char *folder = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    snprintf(fixture->directory, sizeof(fixture->directory), "%.40s/larderd-XXXXXX", folder);
    if (!mkdtemp(fixture->directory))
        die("mkdtemp", fixture->directory);
    const char *dir = fixture->directory;
    snprintf(fixture->config_path, sizeof(fixture->config_path), "%s/larderd.conf", dir);
    snprintf(fixture->socket, sizeof(fixture->socket), "%s/larder.sock", dir);
    snprintf(fixture->control_socket, sizeof(fixture->control_socket), "%s/control.sock", dir);
    snprintf(fixture->log_path, sizeof(fixture->log_path), "%s/log", dir);

    FILE *file = fopen(fixture->config_path, "we");
    if (!file)
        die("fopen", fixture->config_path);
    fprintf(file, "directory = %s/store\nsocket = %s\ncontrol_socket = %s\n", dir, fixture->socket,
            fixture->control_socket);
    write_default(file, config, "host_bytes", "64M");
    write_default(file, config, "ssd_bytes", "256M");
    write_default(file, config, "slab_bytes", "8M");
    write_default(file, config, "segment_bytes", "16M");
    write_default(file, config, "block_tokens", "16");
    write_default(file, config, "io", "threads");
    write_default(file, config, "threads", "2");
    /* Leak checks need to trace the process. */
    write_default(file, config, "core_dumps", "on");
    write_config(file, fixture, config);
    if (fclose(file) != 0)
        die("fclose", fixture->config_path);
}

static pid_t spawn(struct fixture *fixture, const char *const *arguments)
{
    char program[512];
    char *argv[64];
    int count = 0;
    fixture_program(program, fixture->program ? fixture->program : "larderd");
    for (int i = 0; fixture->prefix && fixture->prefix[i] && count < 40; i++)
        argv[count++] = (char *)(size_t)fixture->prefix[i];
    argv[count++] = program;
    for (int i = 0; arguments[i] && count < 63; i++)
        argv[count++] = (char *)(size_t)arguments[i];
    argv[count] = NULL;
    pid_t pid = fork();
    if (pid < 0)
        die("fork", program);
    if (pid == 0) {
        /* A test that fails leaves no daemon behind. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int log = open(fixture->log_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
        dup2(log, STDERR_FILENO);
        dup2(log, STDOUT_FILENO);
        execvp(argv[0], argv);
        perror(argv[0]);
        _exit(127);
    }
    return pid;
}

static void show_log(const struct fixture *fixture)
{
    char line[1024];
    FILE *file = fopen(fixture->log_path, "re");
    while (file && fgets(line, sizeof(line), file))
        fprintf(stderr, "larderd| %s", line);
    if (file)
        fclose(file);
}

static int wait_ms(const struct fixture *fixture)
{
    return fixture->wait_ms ? fixture->wait_ms : WAIT_MS;
}

static void give_up(const struct fixture *fixture, const char *what)
{
    char message[64];
    show_log(fixture);
    snprintf(message, sizeof(message), "waited %d ms for larderd to %s", wait_ms(fixture), what);
    errno = ETIMEDOUT;
    die(message, fixture->config_path);
}

static int wait_exit(const struct fixture *fixture, pid_t pid)
{
    int status;
    for (int waited = 0; waited < wait_ms(fixture); waited += 5) {
        pid_t got = waitpid(pid, &status, WNOHANG);
        if (got == pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
        if (got < 0)
            die("waitpid", "larderd");
        sleep_ms(5);
    }
    kill(pid, SIGKILL);
    give_up(fixture, "end");
    return -1;
}

static bool somebody_listens(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket", path);
    bool listens = connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;
    close(fd);
    return listens;
}

int fixture_try_restart(struct fixture *fixture)
{
    const char *const arguments[] = {"--config", fixture->config_path, NULL};
    fixture->pid = spawn(fixture, arguments);
    for (int waited = 0; waited < wait_ms(fixture); waited += 5) {
        int status;
        if (somebody_listens(fixture->control_socket))
            return 0;
        if (waitpid(fixture->pid, &status, WNOHANG) == fixture->pid) {
            fixture->pid = 0;
            int code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
            return code ? code : -1; /* it may not end by itself */
        }
        sleep_ms(5);
    }
    give_up(fixture, "serve or end");
    return -1;
}

void fixture_restart(struct fixture *fixture)
{
    if (fixture_try_restart(fixture) == 0)
        return;
    show_log(fixture);
    errno = 0;
    die("larderd does not start", fixture->config_path);
}

void fixture_start(struct fixture *fixture, const char *config)
{
    fixture_prepare(fixture, config);
    fixture_restart(fixture);
}

int fixture_run(struct fixture *fixture, const char *const *arguments)
{
    return wait_exit(fixture, spawn(fixture, arguments));
}

void fixture_kill(struct fixture *fixture)
{
    kill(fixture->pid, SIGKILL);
    wait_exit(fixture, fixture->pid);
    fixture->pid = 0;
}

int fixture_terminate(struct fixture *fixture)
{
    kill(fixture->pid, SIGTERM);
    int code = wait_exit(fixture, fixture->pid);
    fixture->pid = 0;
    return code;
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *at)
{
    (void)status;
    (void)type;
    (void)at;
    return remove(path);
}

void fixture_stop(struct fixture *fixture)
{
    int code = fixture->pid ? fixture_terminate(fixture) : 0;
    if (code != 0) {
        show_log(fixture);
        fprintf(stderr, "fixture: larderd ended with %d\n", code);
        abort();
    }
    nftw(fixture->directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

bool fixture_alive(const struct fixture *fixture)
{
    siginfo_t info = {0};
    return fixture->pid != 0 &&
           waitid(P_PID, (id_t)fixture->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
}

bool fixture_log_has(const struct fixture *fixture, const char *text)
{
    char line[2048];
    bool found = false;
    FILE *file = fopen(fixture->log_path, "re");
    while (file && !found && fgets(line, sizeof(line), file))
        found = strstr(line, text) != NULL;
    if (file)
        fclose(file);
    return found;
}

int fixture_fd_count(const struct fixture *fixture)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd", fixture->pid);
    DIR *folder = opendir(path);
    if (!folder)
        die("opendir", path);
    int count = -2; /* "." and ".." */
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}
