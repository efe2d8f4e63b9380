/* SPDX-License-Identifier: Apache-2.0 */
/* session_priv.h - the parts of a session, for the files session*.c and admin.c.
 * Threads: event thread, unless a field says otherwise.
 */
#ifndef LARDER_DAEMON_SESSION_PRIV_H
#define LARDER_DAEMON_SESSION_PRIV_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/wire.h"
#include "daemon/completions.h"
#include "daemon/frame.h"
#include "daemon/larderd.h"
#include "daemon/output.h"
#include "daemon/session.h"
#include "daemon/staging.h"
#include "storage/store.h"

struct account;
struct blend;
struct event;
struct larder_hasher;
struct put;

/* Leases of a connection are found by request in short lists, whatever requests a client chooses:
 * a WIRE_RELEASE names up to 1,024. */
#define LEASE_BUCKETS 256u

enum session_state {
    SESSION_NEW,
    SESSION_SETUP,
    SESSION_READY,
    SESSION_CLOSED,
};

/* Why a session's requests are not read now; bits. */
enum session_pause {
    PAUSE_OUTPUT = 1, /* the client does not read its answers */
    PAUSE_SETUP = 2,  /* a hello or a model is at a worker: what follows may depend on it */
    PAUSE_STOP = 4,   /* the daemon ends */
};

/* Lives as long as its session. */
struct session_model {
    struct larder_model_info info;
    struct larder_hasher *hasher; /* the session's running PUT's, on whatever worker */
    bool is_held;                 /* in the store */
    char *recipe;                 /* of what is put without one */
};

struct ssd_get;

/* A client's hold on entries, or one that is loading and already let go. */
struct lease {
    struct lease *older; /* all leases of the daemon, by age */
    struct lease *newer;
    struct lease *next; /* of the same bucket of the session */
    struct lease **link;
    struct session *session;
    struct larder_lease *handle;
    uint64_t request;
    uint64_t started_ms;
    uint64_t began_us;
    struct ssd_get *get; /* at a worker, which takes the lease; NULL: taken */
    bool loading;        /* `done` has not come back */
    bool released;       /* ended before that */
    /* storage thread, until the completion is posted */
    struct completion completion;
    uint32_t loaded;
    int err;
};

struct session {
    struct larderd *daemon;
    struct session *next;
    struct session **link;
    enum frame_side side;
    enum session_state state;
    uint32_t refs;  /* 1 while open, and 1 for everything in flight */
    uint32_t pause; /* enum session_pause */
    int fd;
    uint32_t uid;
    int32_t pid;
    struct account *account;
    struct event *read_event;
    struct event *write_event;
    uint64_t opened_ms;

    struct output output;
    uint64_t output_since_ms; /* since when nothing of it went out */

    char tenant_name[LARDER_TENANT_NAME_MAX];
    struct larder_tenant_info tenant; /* from SESSION_READY on */
    struct session_model *models[LARDER_SESSION_MODELS_MAX];
    uint32_t model_count;

    struct lease *leases[LEASE_BUCKETS]; /* by request */
    uint32_t lease_count;
    uint8_t *slabs_sent; /* a bit a slab id */
    uint32_t slabs_sent_bytes;

    struct staging staging;
    struct staging upload; /* of the control socket: a profile that is to be added */
    struct put *put_first; /* in order; the first one runs */
    struct put **put_last_next;
    uint32_t put_open;   /* that may still read staging */
    struct blend *blend; /* NULL: none that is not let go */
};

void session_ref(struct session *session);
void session_unref(struct session *session);
void session_pause(struct session *session, enum session_pause why);
void session_resume(struct session *session, enum session_pause why);

/* Answers; nothing happens when the session is closed. */
void session_reply(struct session *session, enum wire_type type, uint64_t request, const void *body,
                   size_t body_bytes);
void session_reply_parts(struct session *session, enum wire_type type, uint64_t request,
                         const struct iovec *parts, int part_count, int pass_fd);
/* The calling thread's last error message goes along. */
void session_fail(struct session *session, uint64_t request, int code);
/* The same with a message that another thread had. */
void session_fail_text(struct session *session, uint64_t request, int code, const char *message);
/* A frame that breaks the protocol: says so, then closes. */
void session_refuse(struct session *session, uint64_t request);

/* Around work that is answered later: holds the session and counts it; -EBUSY over the limit. */
int session_begin(struct session *session);
void session_end(struct session *session);
/* Before anything is given to a worker: -EBUSY while enough of the tenant waits for one. */
int session_may_work(struct session *session);

/* Which of the connection's models; NULL, with a message, for a handle it was not given. */
struct session_model *session_model_of(struct session *session, uint32_t handle);

/* --- requests: LARDER_EPROTO closes the session, any other error is its answer ---------------- */

int session_hello(struct session *session, const struct frame *frame);
int session_model(struct session *session, const struct frame *frame);
void session_models_free(struct session *session);

int session_lookup(struct session *session, const struct frame *frame);
int session_get(struct session *session, const struct frame *frame);
int session_prefetch(struct session *session, const struct frame *frame);
/* What a GET's or PREFETCH's body asks the store for; -EINVAL for layers that the model has not. */
int session_want(struct session *session, struct larder_want *out, const struct wire_keys *wire,
                 const struct larder_key *keys);
int session_release(struct session *session, const struct frame *frame);
void session_release_all(struct session *session);
/* Revokes what is older than lease_ms. */
void session_expire_leases(struct larderd *daemon, uint64_t now_ms);
/* Revokes some of the oldest leases of a tenant that keeps another out of the host tier. */
void session_feed_starving(struct larderd *daemon, uint64_t now_ms);

int session_staging(struct session *session, const struct frame *frame);
/* The session has so much staging from now on. */
void session_staging_count(struct session *session, uint64_t bytes);
int session_put(struct session *session, const struct frame *frame);

int session_worker(struct session *session, const struct frame *frame);
int session_blend(struct session *session, const struct frame *frame);
int session_blend_read(struct session *session, const struct frame *frame);
/* A WIRE_RELEASE names this request: passed over when it is not that of a blend. */
void session_blend_release(struct session *session, uint64_t request);
void session_blend_close(struct session *session);

int session_remove(struct session *session, const struct frame *frame);
int session_stat(struct session *session, const struct frame *frame);
int session_mark(struct session *session, const struct frame *frame);
/* What they share with the control socket. */
int session_remove_key(struct session *session, uint64_t request, uint32_t tenant,
                       const struct larder_key *key, uint32_t variant,
                       enum larder_remove_pinned pinned);
int session_mark_key(struct session *session, uint64_t request, uint32_t tenant,
                     const struct wire_mark *wire);
int session_tenant_stat(const struct larderd *daemon, struct wire_stat_ok *out, uint32_t tenant);

int session_profile(struct session *session, const struct frame *frame);
int admin_profile_new(struct session *session, const struct frame *frame);
int admin_profile_add(struct session *session, const struct frame *frame);
int admin_profiles(struct session *session, const struct frame *frame);
int admin_profile_rm(struct session *session, const struct frame *frame);
int admin_measure(struct session *session, const struct frame *frame);
int admin_measures(struct session *session, const struct frame *frame);
int admin_tokens(struct session *session, const struct frame *frame);
int admin_sections(struct session *session, const struct frame *frame);
int admin_purge(struct session *session, const struct frame *frame);
/* LARDER_ENOTFOUND with a message. */
int admin_find_tenant(const struct session *session, struct larder_tenant_info *out,
                      const char *name);
int admin_request(struct session *session, const struct frame *frame);

#endif
