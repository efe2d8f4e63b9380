/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   no client can hurt the daemon or another client: malformed and misplaced frames,
 *         descriptors sent along, clients that die, never speak, never read, or change staging
 *         while it is read; full memory, full disk, used-up descriptors.
 * Method: a real larderd and raw frames. After each test the daemon is alive, holds no descriptor
 *         more than before, and serves a client that behaves.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "tests/daemon/fixture.h"
#include "tests/daemon/peer.h"

static struct fixture fixture;
static int fds_before;

static void sleep_ms(int ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void start(const char *config)
{
    fixture_start(&fixture, config);
    /* What the first clients make the daemon open for good is no leak. */
    peer_check_served(fixture.socket, 1000);
    sleep_ms(50);
    fds_before = fixture_fd_count(&fixture);
}

static void check_no_leak(void)
{
    int now = 0;
    for (int i = 0; i < 100; i++) {
        now = fixture_fd_count(&fixture);
        if (now <= fds_before + 1) /* a segment may have been opened */
            return;
        sleep_ms(50);
    }
    ck_abort_msg("the daemon has %d descriptors, %d before", now, fds_before);
}

static void stop(void)
{
    ck_assert(fixture_alive(&fixture));
    peer_check_served(fixture.socket, 4711);
    check_no_leak();
    fixture_stop(&fixture);
}

/* --- frames ----------------------------------------------------------------------------------- */

START_TEST(frames_before_the_hello)
{
    static const struct {
        uint16_t type;
        uint16_t bytes;
    } early[] = {{WIRE_STAT, 0},
                 {WIRE_PUT, sizeof(struct wire_put)},
                 {WIRE_STAGING, sizeof(struct wire_staging)},
                 {WIRE_REMOVE, 32},
                 {WIRE_MODEL, sizeof(struct wire_model)}};
    start(NULL);
    for (size_t i = 0; i < LARDER_COUNT_OF(early); i++) {
        struct peer peer;
        uint8_t body[2048] = {0};
        struct wire_put *put = (struct wire_put *)body;
        if (early[i].type == WIRE_PUT)
            put->token_count = 1;
        if (early[i].type == WIRE_STAGING)
            body[0] = 1;
        peer_connect(&peer, fixture.socket);
        uint64_t request = peer_send(&peer, early[i].type, body, early[i].bytes, NULL, 0);
        peer_expect_error(&peer, request, LARDER_EPROTO);
        peer_expect_close(&peer);
        peer_close(&peer);
    }
    stop();
}
END_TEST

START_TEST(hellos_that_are_wrong)
{
    struct peer peer;
    start(NULL);
    struct wire_hello hello = {WIRE_MAGIC, WIRE_VERSION + 1, WIRE_VERSION + 9, 0};
    peer_connect(&peer, fixture.socket);
    uint64_t request = peer_send(&peer, WIRE_HELLO, &hello, sizeof(hello), NULL, 0);
    peer_expect_error(&peer, request, LARDER_EVERSION);
    peer_expect_close(&peer);
    peer_close(&peer);

    hello = (struct wire_hello){0x12345678, 1, 1, 0};
    peer_connect(&peer, fixture.socket);
    request = peer_send(&peer, WIRE_HELLO, &hello, sizeof(hello), NULL, 0);
    peer_expect_error(&peer, request, LARDER_EPROTO);
    peer_expect_close(&peer);
    peer_close(&peer);

    hello = (struct wire_hello){WIRE_MAGIC, 1, 1, 0};
    peer_connect(&peer, fixture.socket);
    peer_say_hello(&peer);
    request = peer_send(&peer, WIRE_HELLO, &hello, sizeof(hello), NULL, 0);
    peer_expect_error(&peer, request, LARDER_EPROTO);
    peer_expect_close(&peer);
    peer_close(&peer);
    stop();
}
END_TEST

START_TEST(lengths_that_are_wrong)
{
    static uint8_t bytes[LARDER_FRAME_BYTES_MAX + 5000];
    static const size_t lengths[] = {1, 8, 15, 17, 4096, 65536, 65537, 65544, 70000};
    start(NULL);
    for (size_t i = 0; i < LARDER_COUNT_OF(lengths); i++) {
        struct peer peer;
        peer_connect(&peer, fixture.socket);
        peer_say_hello(&peer);
        memset(bytes, 0, sizeof(bytes));
        struct wire_frame *frame = (struct wire_frame *)bytes;
        frame->bytes = (uint32_t)lengths[i];
        frame->type = WIRE_STAT;
        frame->request = 9;
        ck_assert_int_eq(peer_send_bytes(&peer, bytes, lengths[i]), 0);
        struct answer answer;
        peer_receive(&peer, &answer);
        ck_assert_uint_eq(answer.byte_count, 16 + sizeof(struct wire_error));
        ck_assert_int_eq(((struct wire_error *)(answer.bytes + 16))->code, LARDER_EPROTO);
        peer_expect_close(&peer);
        peer_close(&peer);
    }
    /* An empty frame is a close. */
    struct peer peer;
    peer_connect(&peer, fixture.socket);
    peer_say_hello(&peer);
    ck_assert_int_eq(peer_send_bytes(&peer, bytes, 0), 0);
    peer_expect_close(&peer);
    peer_close(&peer);
    stop();
}
END_TEST

/* A client that sends on before it reads still hears why it was closed. */
START_TEST(reason_is_heard)
{
    start(NULL);
    for (int round = 0; round < 50; round++) {
        struct peer peer;
        const struct wire_frame bad = {16, WIRE_STAT, 1, 77};
        const struct wire_frame good = {16, WIRE_STAT, 0, 78};
        peer_connect(&peer, fixture.socket);
        peer_say_hello(&peer);
        ck_assert_int_eq(peer_send_bytes(&peer, &bad, sizeof(bad)), 0);
        for (int i = 0; i < 50; i++) {
            if (peer_send_bytes(&peer, &good, sizeof(good)) < 0)
                break;
        }
        peer_expect_error(&peer, 77, LARDER_EPROTO);
        peer_expect_close(&peer);
        peer_close(&peer);
    }
    stop();
}
END_TEST

/* Each row: a good PUT with one thing changed that must close the connection. */
START_TEST(puts_out_of_bounds)
{
    start(NULL);
    for (int i = 0; i < 10; i++) {
        struct peer peer;
        struct block block;
        struct wire_put put;
        peer_open(&peer, fixture.socket);
        peer_chain(&peer, &block, 1, 77);
        uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
        uint8_t *kv = calloc(1, bytes);
        peer_stage(&peer, &put, &block, kv, 0, LARDER_CACHED, NULL);
        free(kv);
        switch (i) {
        case 0:
            put.staging_offset = peer.staging_bytes;
            break;
        case 1:
            put.staging_offset = peer.staging_bytes - 64;
            break;
        case 2:
            put.staging_offset = UINT64_MAX & ~63ull;
            break;
        case 3:
            put.staging_bytes = UINT64_MAX;
            break;
        case 4:
            put.staging_bytes -= 1;
            break;
        case 5:
            put.staging_bytes += 64;
            break;
        case 6:
            put.model = 1;
            break;
        case 7:
            put.model = UINT32_MAX;
            break;
        case 8:
            put.extra_bytes = 64;
            break;
        case 9:
            put.token_count = 15;
            break;
        }
        uint64_t request = peer_send(&peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
        peer_expect_error(&peer, request, LARDER_EPROTO);
        peer_expect_close(&peer);
        peer_close(&peer);
    }
    stop();
}
END_TEST

START_TEST(puts_out_of_order)
{
    struct larder_model_desc desc;
    struct peer peer;
    struct block block;
    start(NULL);
    peer_model_desc(&desc);

    /* Before a model. */
    struct wire_put put = {.token_count = 16};
    peer_connect(&peer, fixture.socket);
    peer_say_hello(&peer);
    uint64_t request = peer_send(&peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
    peer_expect_error(&peer, request, LARDER_EPROTO);
    peer_expect_close(&peer);
    peer_close(&peer);

    /* Before staging. */
    peer_connect(&peer, fixture.socket);
    peer_say_hello(&peer);
    peer_open_model(&peer, &desc);
    peer_chain(&peer, &block, 1, 1);
    memcpy(put.key, block.key.bytes, 32);
    put.staging_bytes = 64 + peer_kv_bytes(&peer, 16);
    request = peer_send(&peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
    peer_expect_error(&peer, request, LARDER_EPROTO);
    peer_expect_close(&peer);
    peer_close(&peer);

    /* A block longer than blocks are: refused, and the connection stays. */
    peer_open(&peer, fixture.socket);
    put.token_count = 17;
    put.staging_bytes = larder_round_up(17 * 4, 64) + peer_kv_bytes(&peer, 17);
    request = peer_send(&peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
    peer_expect_error(&peer, request, LARDER_ELIMIT);
    peer_put_chain(&peer, &block, 1, 1, LARDER_CACHED);

    /* A GET that names a lease it holds. */
    struct wire_get_ok ok;
    struct wire_ref ref;
    struct wire_loaded loaded;
    peer_get(&peer, &block, 1, &ok, &ref, &loaded);
    struct wire_keys keys = {.model = peer.model, .key_count = 1, .worst = LARDER_QUALITY_EXACT};
    peer.request--;
    request = peer_send(&peer, WIRE_GET, &keys, sizeof(keys), block.key.bytes, 32);
    peer_expect_error(&peer, request, LARDER_EPROTO);
    peer_expect_close(&peer);
    peer_close(&peer);
    stop();
}
END_TEST

/* A description and a recipe of a few bytes that would make a worker take gigabytes. */
START_TEST(recipes_that_take_all_memory)
{
#define TWICE(recipe) "residual{" recipe "}{" recipe "}"
    static const struct {
        const char *recipe;
        int code;
    } cases[] = {{TWICE(TWICE(TWICE(TWICE("quant")))), LARDER_ELIMIT},
                 {"join | rfft | quant", LARDER_EUNSUPPORTED},
                 {"residual{quant}{join | qjl}", LARDER_EUNSUPPORTED}};
    struct larder_model_desc desc;
    struct peer peer;
    struct block block;
    start("staging_bytes_max = 64M\n");
    peer_model_desc(&desc);
    desc.layers = 1;
    desc.kv_heads = desc.k_dims = 1024;
    desc.v_dims = 1;
    desc.rope.kind = LARDER_ROPE_NONE;
    peer_connect(&peer, fixture.socket);
    peer_say_hello(&peer);
    peer_open_model(&peer, &desc);
    peer_open_staging(&peer, 40 << 20);
    peer_chain(&peer, &block, 1, 1);
    uint8_t *kv = calloc(1, peer_kv_bytes(&peer, 16));
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++)
        ck_assert_int_eq(peer_put(&peer, &block, kv, LARDER_CACHED, cases[i].recipe, NULL),
                         cases[i].code);
    char status[4096] = "";
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/status", (int)fixture.pid);
    FILE *file = fopen(path, "re");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_gt(fread(status, 1, sizeof(status) - 1, file), 0);
    fclose(file);
    const char *peak = strstr(status, "VmHWM:");
    ck_assert_ptr_nonnull(peak);
    ck_assert_msg(atol(peak + 6) < 1000000, "the daemon took %ld KB", atol(peak + 6));
    free(kv);
    peer_close(&peer);
    stop();
}
END_TEST

/* A chain's root is no block: a run of keys that reaches it through its parents was once served
 * from it, and the daemon stopped on an assertion. */
START_TEST(gets_of_the_root)
{
    start(NULL);
    for (uint32_t zeros = 1; zeros <= 3; zeros++) {
        struct peer peer;
        struct block block;
        peer_open(&peer, fixture.socket);
        peer_chain(&peer, &block, 1, 5);
        peer_put_chain(&peer, &block, 1, 5, LARDER_CACHED);
        struct wire_keys keys = {
            .model = peer.model, .key_count = zeros + 1, .worst = LARDER_QUALITY_EXACT};
        struct larder_key items[4] = {0};
        items[zeros] = block.key;
        const uint16_t type = zeros == 3 ? WIRE_LOOKUP : WIRE_GET;
        uint64_t request =
            peer_send(&peer, type, &keys, sizeof(keys), items, (zeros + 1) * sizeof(items[0]));
        peer_expect_error(&peer, request, LARDER_EPROTO);
        peer_expect_close(&peer);
        peer_close(&peer);
    }
    stop();
}
END_TEST

/* Two tenants of one UID, each with a socket: what one takes leaves enough for the other. */
static void two_tenants(struct fixture *out, char sockets[2][96])
{
    fixture_start(out, "tenant a = socket DIR/a.sock\n"
                       "tenant b = socket DIR/b.sock\n"
                       "staging_bytes_max = 1M\n"
                       "staging_bytes_all = 8M\n");
    for (int i = 0; i < 2; i++)
        snprintf(sockets[i], 96, "%s/%c.sock", out->directory, 'a' + i);
}

static int ask_for_staging(struct peer *peer, uint64_t bytes)
{
    struct answer answer;
    struct wire_staging staging = {bytes};
    peer_send(peer, WIRE_STAGING, &staging, sizeof(staging), NULL, 0);
    peer_receive(peer, &answer);
    if (answer.fd >= 0)
        close(answer.fd);
    const struct wire_frame *header = (const struct wire_frame *)answer.bytes;
    if (header->type == WIRE_ERROR)
        return ((const struct wire_error *)(header + 1))->code;
    ck_assert_uint_eq(header->type, WIRE_STAGING_OK);
    return 0;
}

START_TEST(staging_of_one_tenant)
{
    char sockets[2][96];
    two_tenants(&fixture, sockets);
    struct peer peers[8];
    uint32_t got = 0;
    for (int i = 0; i < 8; i++) {
        peer_connect(&peers[i], sockets[0]);
        peer_say_hello(&peers[i]);
        int err = ask_for_staging(&peers[i], 1u << 20);
        ck_assert_int_eq(err, i < 4 ? 0 : -EBUSY);
        got += err == 0;
    }
    ck_assert_uint_eq(got, 4);
    struct peer others[4];
    for (int i = 0; i < 4; i++) {
        peer_connect(&others[i], sockets[1]);
        peer_say_hello(&others[i]);
        ck_assert_int_eq(ask_for_staging(&others[i], 1u << 20), 0);
    }
    /* All of it is in use now; what one gives back, another of the same tenant may have. */
    ck_assert_int_eq(ask_for_staging(&peers[7], 4096), -EBUSY);
    ck_assert_int_eq(ask_for_staging(&peers[0], 4096), 0);
    ck_assert_int_eq(ask_for_staging(&peers[7], 4096), 0);
    for (int i = 0; i < 8; i++)
        peer_close(&peers[i]);
    for (int i = 0; i < 4; i++)
        peer_close(&others[i]);
    fixture_stop(&fixture);
}
END_TEST

static int describe(struct peer *peer, uint32_t number)
{
    struct answer answer;
    struct larder_model_desc desc;
    peer_model_desc(&desc);
    memcpy(desc.weights, &number, sizeof(number));
    peer_send(peer, WIRE_MODEL, &desc, sizeof(desc), NULL, 0);
    peer_receive(peer, &answer);
    const struct wire_frame *header = (const struct wire_frame *)answer.bytes;
    if (header->type == WIRE_ERROR)
        return ((const struct wire_error *)(header + 1))->code;
    ck_assert_uint_eq(header->type, WIRE_MODEL_OK);
    return 0;
}

START_TEST(models_of_one_tenant)
{
    char sockets[2][96];
    two_tenants(&fixture, sockets);
    struct peer peer;
    uint32_t number = 1;
    /* More than a tenant may, each twice; a connection may have 64. */
    for (int i = 0; i < 17; i++) {
        peer_connect(&peer, sockets[0]);
        peer_say_hello(&peer);
        for (int j = 0; j < 63; j++, number++) {
            int wanted = number <= LARDER_MODELS_MAX / 4 ? 0 : LARDER_ELIMIT;
            ck_assert_int_eq(describe(&peer, number), wanted);
            ck_assert_int_eq(describe(&peer, number), wanted);
        }
        ck_assert_int_eq(describe(&peer, 1), 0);
        peer_close(&peer);
    }
    peer_connect(&peer, sockets[1]);
    peer_say_hello(&peer);
    ck_assert_int_eq(describe(&peer, 1), 0);
    ck_assert_int_eq(describe(&peer, number), 0);
    peer_close(&peer);
    fixture_stop(&fixture);
}
END_TEST

START_TEST(control_socket_takes_its_own)
{
    struct peer peer;
    start(NULL);
    peer_connect(&peer, fixture.control_socket);
    peer_say_hello(&peer);
    ck_assert(larder_all_zero(peer.hello.tenant_key, 32));
    uint64_t request = peer_send(&peer, WIRE_STAT, NULL, 0, NULL, 0);
    peer_expect_error(&peer, request, LARDER_EPROTO);
    peer_expect_close(&peer);
    peer_close(&peer);
    peer_open(&peer, fixture.socket);
    request = peer_send(&peer, WIRE_ADMIN_STATUS, NULL, 0, NULL, 0);
    peer_expect_error(&peer, request, LARDER_EPROTO);
    peer_expect_close(&peer);
    peer_close(&peer);
    stop();
}
END_TEST

/* Frames with a few bytes changed, on connections at every stage. */
START_TEST(mutated_frames)
{
    uint64_t end = now_ms() + 2000;
    uint32_t closed = 0;
    uint32_t sent = 0;
    start(NULL);
    srand(2);
    while (now_ms() < end) {
        struct peer peer;
        struct block block;
        peer_open(&peer, fixture.socket);
        peer_chain(&peer, &block, 1, (uint32_t)rand());
        for (int i = 0; i < 50; i++) {
            _Alignas(8) uint8_t frame[4096] = {0};
            struct wire_frame *header = (struct wire_frame *)frame;
            static const uint16_t types[][2] = {{WIRE_PUT, sizeof(struct wire_put)},
                                                {WIRE_GET, sizeof(struct wire_keys) + 32},
                                                {WIRE_LOOKUP, sizeof(struct wire_keys) + 64},
                                                {WIRE_RELEASE, sizeof(struct wire_release) + 16},
                                                {WIRE_STAGING, sizeof(struct wire_staging)},
                                                {WIRE_REMOVE, sizeof(struct wire_remove)},
                                                {WIRE_MODEL, sizeof(struct wire_model)},
                                                {WIRE_STAT, 0}};
            size_t which = (size_t)rand() % LARDER_COUNT_OF(types);
            size_t bytes = 16 + types[which][1];
            header->bytes = (uint32_t)bytes;
            header->type = types[which][0];
            header->request = 1000 + (uint64_t)i;
            if (header->type == WIRE_PUT) {
                uint8_t kv[16384] = {0};
                peer_stage(&peer, (struct wire_put *)(header + 1), &block, kv, 0, LARDER_CACHED,
                           NULL);
            } else if (header->type == WIRE_MODEL) {
                memcpy(header + 1, &peer.desc, sizeof(peer.desc));
            } else if (header->type == WIRE_GET || header->type == WIRE_LOOKUP) {
                ((struct wire_keys *)(header + 1))->key_count = header->type == WIRE_GET ? 1 : 2;
                uint8_t *keys = (uint8_t *)(header + 1) + sizeof(struct wire_keys);
                memcpy(keys, block.key.bytes, 32);
                if (header->type == WIRE_LOOKUP)
                    keys[32] = 1;
            } else if (header->type == WIRE_RELEASE) {
                ((struct wire_release *)(header + 1))->count = 2;
            }
            for (int change = rand() % 3; change > 0; change--)
                frame[(size_t)rand() % bytes] ^= (uint8_t)(1 << rand() % 8);
            if (peer_send_bytes(&peer, frame, bytes) < 0) {
                closed++;
                break;
            }
            sent++;
        }
        peer_close(&peer);
    }
    ck_assert_uint_gt(sent, 100);
    ck_assert_uint_gt(closed, 0);
    stop();
}
END_TEST

/* --- descriptors ------------------------------------------------------------------------------ */

static int send_with_fds(struct peer *peer, const void *bytes, size_t byte_count, int fd_count)
{
    static char control[CMSG_SPACE(253 * sizeof(int))];
    struct iovec part = {(void *)(uintptr_t)bytes, byte_count};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int))};
    int fds[253];
    for (int i = 0; i < fd_count; i++)
        fds[i] = STDERR_FILENO;
    memset(control, 0, sizeof(control));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
    memcpy(CMSG_DATA(header), fds, (size_t)fd_count * sizeof(int));
    return sendmsg(peer->fd, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

START_TEST(smuggled_descriptors)
{
    start(NULL);
    for (int round = 0; round < 20; round++) {
        struct peer peer;
        const struct wire_frame stat = {16, WIRE_STAT, 0, 5};
        peer_connect(&peer, fixture.socket);
        peer_say_hello(&peer);
        ck_assert_int_eq(send_with_fds(&peer, &stat, sizeof(stat), round % 2 ? 253 : 1), 0);
        peer_expect_error(&peer, 0, LARDER_EPROTO);
        peer_expect_close(&peer);
        peer_close(&peer);
    }
    stop();
}
END_TEST

START_TEST(descriptors_used_up)
{
    struct peer peers[40];
    int refused = 0;
    start(NULL);
    struct rlimit old;
    ck_assert_int_eq(prlimit(fixture.pid, RLIMIT_NOFILE, NULL, &old), 0);
    struct rlimit few = {(rlim_t)fds_before + 8, old.rlim_max};
    ck_assert_int_eq(prlimit(fixture.pid, RLIMIT_NOFILE, &few, NULL), 0);
    struct peer early;
    peer_open(&early, fixture.socket);
    for (int i = 0; i < 40; i++)
        peer_connect(&peers[i], fixture.socket);
    for (int i = 0; i < 40; i++) {
        struct pollfd ready = {.fd = peers[i].fd, .events = POLLIN};
        if (poll(&ready, 1, i == 0 ? 1000 : 20) == 1)
            refused++;
    }
    ck_assert_int_gt(refused, 0);
    ck_assert(fixture_log_has(&fixture, "no descriptor for a new client"));
    /* Who is in is served. */
    struct block blocks[2];
    peer_chain(&early, blocks, 2, 5);
    peer_put_chain(&early, blocks, 2, 5, LARDER_CACHED);
    for (int i = 0; i < 40; i++)
        peer_close(&peers[i]);
    peer_close(&early);
    ck_assert_int_eq(prlimit(fixture.pid, RLIMIT_NOFILE, &old, NULL), 0);
    sleep_ms(100);
    stop();
}
END_TEST

/* The slab counted as sent from then on: the client was given refs to what it never got. */
START_TEST(a_slab_without_a_descriptor)
{
    struct peer peer;
    struct block block;
    struct wire_get_ok ok;
    struct wire_ref ref;
    struct wire_loaded loaded;
    start(NULL);
    peer_open(&peer, fixture.socket);
    peer_chain(&peer, &block, 1, 7);
    peer_put_chain(&peer, &block, 1, 7, LARDER_CACHED);
    struct rlimit old;
    ck_assert_int_eq(prlimit(fixture.pid, RLIMIT_NOFILE, NULL, &old), 0);
    struct rlimit none = {3, old.rlim_max};
    ck_assert_int_eq(prlimit(fixture.pid, RLIMIT_NOFILE, &none, NULL), 0);
    peer_expect_error(&peer, peer_send_get(&peer, &block, 1), -EMFILE);
    ck_assert_int_eq(prlimit(fixture.pid, RLIMIT_NOFILE, &old, NULL), 0);
    uint64_t request = peer_get(&peer, &block, 1, &ok, &ref, &loaded);
    ck_assert_uint_eq(loaded.loaded, 1);
    uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *got = malloc(bytes);
    ck_assert_int_eq(peer_read(&peer, &ref, &block, got, bytes), 0);
    free(got);
    peer_release(&peer, request);
    peer_close(&peer);
    stop();
}
END_TEST

/* --- clients that stop ------------------------------------------------------------------------ */

START_TEST(clients_that_die)
{
    start(NULL);
    for (uint32_t round = 0; round < 20; round++) {
        struct peer peer;
        struct block blocks[8];
        struct wire_get_ok ok;
        struct wire_ref refs[8];
        struct wire_loaded loaded;
        struct wire_put put;
        peer_open(&peer, fixture.socket);
        peer_chain(&peer, blocks, 8, round);
        peer_put_chain(&peer, blocks, 4, round, LARDER_CACHED);
        peer_get(&peer, blocks, 4, &ok, refs, &loaded);
        /* Half a block in staging; or PUTs whose answers nobody waits for. */
        uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
        uint8_t *kv = calloc(1, bytes);
        for (uint32_t i = 4; i < 8; i++) {
            peer_stage(&peer, &put, &blocks[i], kv, i * 65536, LARDER_DURABLE, NULL);
            if (round % 2)
                peer_send(&peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
        }
        free(kv);
        peer_close(&peer);
    }
    stop();
}
END_TEST

START_TEST(slow_hello)
{
    struct peer silent;
    struct peer talker;
    start("hello_ms = 200\n");
    peer_connect(&silent, fixture.socket);
    peer_connect(&talker, fixture.socket);
    peer_say_hello(&talker);
    uint64_t begin = now_ms();
    peer_expect_close(&silent);
    ck_assert_uint_ge(now_ms() - begin, 100);
    ck_assert_uint_lt(now_ms() - begin, 10000);
    /* Who said hello may be silent for as long as it likes. */
    sleep_ms(500);
    struct answer answer;
    uint64_t request = peer_send(&talker, WIRE_STAT, NULL, 0, NULL, 0);
    peer_expect(&talker, &answer, WIRE_STAT_OK, request);
    peer_close(&silent);
    peer_close(&talker);
    stop();
}
END_TEST

START_TEST(client_that_never_reads)
{
    struct peer peer;
    start("send_ms = 300\n");
    peer_open(&peer, fixture.socket);
    const struct wire_frame stat = {16, WIRE_STAT, 0, 5};
    uint64_t begin = now_ms();
    int err = 0;
    ck_assert_int_eq(fcntl(peer.fd, F_SETFL, O_NONBLOCK), 0);
    while (now_ms() - begin < 15000) {
        err = peer_send_bytes(&peer, &stat, sizeof(stat));
        if (err < 0 && err != -EAGAIN)
            break;
        if (err == -EAGAIN)
            sleep_ms(20);
    }
    ck_assert(err == -EPIPE || err == -ECONNRESET);
    ck_assert(fixture_log_has(&fixture, "did not read"));
    peer_close(&peer);
    stop();
}
END_TEST

/* --- staging ---------------------------------------------------------------------------------- */

/* Another process with the same staging; a thread's race would be the test's own. */
static pid_t start_racer(uint8_t *staging)
{
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* KV only: changed tokens are told by the key. */
    for (uint32_t state = 1;; state = state * 1664525 + 1013904223)
        ((volatile uint8_t *)staging)[64 + state % 8192] = (uint8_t)(state >> 24);
}

START_TEST(staging_changed_while_read)
{
    struct peer peer;
    struct block blocks[100];
    start(NULL);
    peer_open(&peer, fixture.socket);
    peer_chain(&peer, blocks, 100, 3);
    pid_t racer = start_racer(peer.staging);
    peer_put_chain(&peer, blocks, 100, 3, LARDER_CACHED);
    kill(racer, SIGKILL);
    waitpid(racer, NULL, 0);
    /* Spoilt, but whole: every record decodes. */
    struct wire_get_ok ok;
    struct wire_ref refs[100];
    struct wire_loaded loaded;
    peer_get(&peer, blocks, 100, &ok, refs, &loaded);
    ck_assert_uint_eq(loaded.loaded, 100);
    uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = malloc(bytes);
    for (int i = 0; i < 100; i++)
        ck_assert_int_eq(peer_read(&peer, &refs[i], &blocks[i], kv, bytes), 0);
    free(kv);
    peer_close(&peer);
    stop();
}
END_TEST

/* --- full ------------------------------------------------------------------------------------- */

/* 16 tokens are 512 KiB. */
static void open_large(struct peer *peer)
{
    struct larder_model_desc desc;
    peer_model_desc(&desc);
    desc.layers = 8;
    desc.kv_heads = 8;
    desc.k_dims = 128;
    desc.v_dims = 128;
    peer_connect(peer, fixture.socket);
    peer_say_hello(peer);
    peer_open_model(peer, &desc);
    peer_open_staging(peer, 1u << 20);
}

START_TEST(host_tier_full_of_leases)
{
    struct peer peer;
    struct block blocks[64];
    struct wire_get_ok ok;
    struct wire_ref refs[64];
    struct wire_loaded loaded;
    start("host_bytes = 8M\nslab_bytes = 8M\nrecipe = raw\n");
    open_large(&peer);
    peer_chain(&peer, blocks, 64, 1);
    uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = calloc(1, bytes);
    uint64_t leases[64];
    uint32_t stored = 0;
    int err = 0;
    for (; stored < 64; stored++) {
        peer_fill_kv(kv, bytes, stored);
        uint64_t begin = now_ms();
        err = peer_put(&peer, &blocks[stored], kv, LARDER_DURABLE, NULL, NULL);
        if (err < 0) {
            ck_assert_uint_lt(now_ms() - begin, 5000);
            break;
        }
        leases[stored] = peer_get(&peer, &blocks[stored], 1, &ok, &refs[stored], &loaded);
        ck_assert_uint_eq(loaded.loaded, 1);
    }
    ck_assert_int_eq(err, -EBUSY);
    ck_assert_uint_gt(stored, 4);
    /* What is leased stays as it was; another client is told the same at once, and is let in when
     * room is there. */
    uint8_t *wanted = malloc(bytes);
    for (uint32_t i = 0; i < stored; i++) {
        peer_fill_kv(wanted, bytes, i);
        ck_assert_int_eq(peer_read(&peer, &refs[i], &blocks[i], kv, bytes), 0);
        ck_assert_mem_eq(wanted, kv, bytes);
    }
    free(wanted);
    for (uint32_t i = 0; i < stored; i++)
        peer_release(&peer, leases[i]);
    peer_fill_kv(kv, bytes, stored);
    ck_assert_int_eq(peer_put(&peer, &blocks[stored], kv, LARDER_DURABLE, NULL, NULL), 0);
    free(kv);
    peer_close(&peer);
    stop();
}
END_TEST

/* More than the SSD tier holds: old entries go, or new ones are refused; reading goes on. */
static void fill_disk(void)
{
    struct peer peer;
    struct block block;
    uint32_t refused = 0;
    open_large(&peer);
    uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = calloc(1, bytes);
    uint8_t *got = malloc(bytes);
    for (uint32_t i = 0; i < 150; i++) {
        peer_chain(&peer, &block, 1, i);
        peer_fill_kv(kv, bytes, i);
        int err = peer_put(&peer, &block, kv, LARDER_DURABLE, "raw", NULL);
        if (err < 0) {
            refused++;
            continue;
        }
        struct wire_get_ok ok;
        struct wire_ref ref;
        struct wire_loaded loaded;
        uint64_t request = peer_get(&peer, &block, 1, &ok, &ref, &loaded);
        if (loaded.loaded == 1) {
            ck_assert_int_eq(peer_read(&peer, &ref, &block, got, bytes), 0);
            ck_assert_mem_eq(kv, got, bytes);
            peer_release(&peer, request);
        }
    }
    ck_assert_uint_lt(refused, 150);
    free(kv);
    free(got);
    peer_close(&peer);
}

START_TEST(ssd_tier_full)
{
    start("host_bytes = 16M\nssd_bytes = 32M\nsegment_bytes = 8M\n");
    fds_before += 8; /* segments and slabs that the test makes the daemon open for good */
    fill_disk();
    stop();
}
END_TEST

START_TEST(disk_full)
{
    fixture_prepare(&fixture, "host_bytes = 16M\nssd_bytes = 1G\nsegment_bytes = 8M\n");
    char store[128];
    snprintf(store, sizeof(store), "%s/store", fixture.directory);
    ck_assert_int_eq(mkdir(store, 0700), 0);
    if (mount("larder", store, "tmpfs", 0, "size=48m,mode=0700") < 0) {
        fprintf(stderr, "disk_full: skipped, cannot mount a small disk: %s\n", strerror(errno));
        fixture_stop(&fixture);
        return;
    }
    fixture_restart(&fixture);
    peer_check_served(fixture.socket, 1000);
    fds_before = fixture_fd_count(&fixture) + 4;
    fill_disk();
    ck_assert(fixture_alive(&fixture));
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    ck_assert_int_eq(umount(store), 0);
    fixture_stop(&fixture);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_hostile");
    TCase *tests = tcase_create("hostile");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, frames_before_the_hello);
    tcase_add_test(tests, hellos_that_are_wrong);
    tcase_add_test(tests, lengths_that_are_wrong);
    tcase_add_test(tests, reason_is_heard);
    tcase_add_test(tests, puts_out_of_bounds);
    tcase_add_test(tests, puts_out_of_order);
    tcase_add_test(tests, recipes_that_take_all_memory);
    tcase_add_test(tests, gets_of_the_root);
    tcase_add_test(tests, staging_of_one_tenant);
    tcase_add_test(tests, models_of_one_tenant);
    tcase_add_test(tests, control_socket_takes_its_own);
    tcase_add_test(tests, mutated_frames);
    tcase_add_test(tests, smuggled_descriptors);
    tcase_add_test(tests, descriptors_used_up);
    tcase_add_test(tests, a_slab_without_a_descriptor);
    tcase_add_test(tests, clients_that_die);
    tcase_add_test(tests, slow_hello);
    tcase_add_test(tests, client_that_never_reads);
    tcase_add_test(tests, staging_changed_while_read);
    tcase_add_test(tests, host_tier_full_of_leases);
    tcase_add_test(tests, ssd_tier_full);
    tcase_add_test(tests, disk_full);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
