/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/served.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/larderd.h"
#include "daemon/served_process.h"
#include "daemon/session_priv.h"
#include "daemon/work.h"

/* Before a worker that ended is started again; doubled each time, until one stays. */
#define DELAY_MS_LEAST 200u
#define DELAY_MS_MOST  60000u
/* One that was ready for so long has stayed. */
#define STAYED_MS 60000u
/* One that goes on for so long after WORK_END is stuck: it looks between two layers. */
#define END_MS 30000u

enum worker_state {
    WORKER_DOWN, /* to be started at start_ms */
    WORKER_LOADING,
    WORKER_READY,
    WORKER_DYING, /* killed, not yet reaped */
};

struct served {
    struct larderd *daemon;
    const struct served_model *model;
    enum worker_state state;
    pid_t pid;
    int fd;
    struct event *event;
    uint64_t start_ms;
    uint64_t ready_ms; /* since when */
    uint32_t delay_ms;
    bool failed; /* the last start did not make it ready */
    bool known;  /* what follows was told by a worker that was ready */
    struct larder_key fingerprint;
    struct work_ready ready;

    struct blend *first; /* that wait */
    struct blend **last_next;
    uint32_t waiting;
    uint32_t tenant_last;
    struct blend *current; /* at the worker */
    uint64_t current_us;   /* since when */
    uint64_t end_ms;       /* when WORK_END was sent for it */
    uint64_t serials;
    uint64_t starts; /* and further counts: base/wire.h */
    uint64_t blends;
    uint64_t failures;
    uint64_t busy_us;
};

struct served_models {
    bool stopped;
    uint32_t count;
    struct served all[];
};

static void pump(struct served *served);

/* --- the queue -------------------------------------------------------------------------------- */

static void append(struct served *served, struct blend *blend)
{
    blend->next = NULL;
    *served->last_next = blend;
    served->last_next = &blend->next;
    served->waiting++;
}

static void prepend(struct served *served, struct blend *blend)
{
    blend->next = served->first;
    served->first = blend;
    if (!blend->next)
        served->last_next = &blend->next;
    served->waiting++;
}

static void unlink_at(struct served *served, struct blend **at)
{
    struct blend *blend = *at;
    *at = blend->next;
    if (!blend->next)
        served->last_next = at;
    served->waiting--;
}

static void unlink_waiting(struct served *served, struct blend *blend)
{
    struct blend **at = &served->first;
    while (*at != blend)
        at = &(*at)->next;
    unlink_at(served, at);
}

/* The first of another tenant than the last one's, else the first. */
static struct blend *take_next(struct served *served)
{
    struct blend **at = &served->first;
    while (*at && (*at)->session->tenant.index == served->tenant_last)
        at = &(*at)->next;
    if (!*at)
        at = &served->first;
    struct blend *blend = *at;
    if (blend)
        unlink_at(served, at);
    return blend;
}

/* --- the process ------------------------------------------------------------------------------ */

static void fail_blend(struct blend *blend, int code, const char *message)
{
    struct wire_error error = {.code = code};
    snprintf(error.message, sizeof(error.message), "%s", message);
    blend->served->failures++;
    blend_answer(blend, &error, NULL);
}

/* A worker that does not answer keeps its client for no longer than one that reads nothing. */
static void fail_read(struct blend *blend, const char *message)
{
    struct wire_error error = {.code = LARDER_ESTALE};
    snprintf(error.message, sizeof(error.message), "%s", message);
    blend->state = BLEND_HELD;
    blend_read_answer(blend, &error);
}

/* Nothing is at the worker any more. */
static struct blend *take_current(struct served *served)
{
    struct blend *blend = served->current;
    if (blend)
        served->busy_us += larderd_now_us() - served->current_us;
    served->current = NULL;
    return blend;
}

/* What the worker was doing is done once more, unless it may be what killed it. */
static void drop_current(struct served *served)
{
    struct blend *blend = take_current(served);
    if (!blend)
        return;
    if (!blend->answered && !blend->let_go && blend->tries == 0) {
        blend->tries++;
        blend->state = BLEND_WAITING;
        prepend(served, blend);
        return;
    }
    struct wire_error error = {.code = blend->answered ? LARDER_ESTALE : LARDER_EDOWN};
    snprintf(error.message, sizeof(error.message),
             "the worker of this model ended meanwhile; larderd's log says why; ask again");
    if (!blend->answered)
        fail_blend(blend, error.code, error.message);
    else if (blend->state == BLEND_READING)
        fail_read(blend, error.message);
    blend_free(blend);
}

static void worker_lost(struct served *served, const char *why)
{
    larder_log(served->daemon->stopping ? LARDER_LOG_INFO : LARDER_LOG_WARN,
               "larder-worker %d of model %s: %s", (int)served->pid, served->model->name, why);
    kill(served->pid, SIGKILL);
    event_free(served->event);
    served->event = NULL;
    close(served->fd);
    served->fd = -1;
    served->failed = served->state == WORKER_LOADING;
    if (served->state == WORKER_READY && larderd_now_ms() - served->ready_ms > STAYED_MS)
        served->delay_ms = 0;
    served->state = WORKER_DYING;
    drop_current(served);
}

static void wait_to_start(struct served *served)
{
    served->delay_ms *= 2;
    if (served->delay_ms < DELAY_MS_LEAST)
        served->delay_ms = DELAY_MS_LEAST;
    if (served->delay_ms > DELAY_MS_MOST)
        served->delay_ms = DELAY_MS_MOST;
    served->start_ms = larderd_now_ms() + served->delay_ms;
    served->state = WORKER_DOWN;
}

static void reap(struct served *served, int flags)
{
    int status;
    if (waitpid(served->pid, &status, flags) != served->pid)
        return;
    served->pid = 0;
    wait_to_start(served);
    if (served->daemon->stopping)
        return;
    larder_log(LARDER_LOG_WARN, "the worker of model %s is started again in %u ms",
               served->model->name, served->delay_ms);
}

static bool are_rates(const struct work_rates *rates)
{
    return isfinite(rates->row_ns) && isfinite(rates->pair_ns) && rates->row_ns >= 0 &&
           rates->pair_ns >= 0;
}

/* Those that wait were asked of other weights. */
static void refuse_waiting(struct served *served)
{
    while (served->first) {
        fail_blend(served->first, LARDER_EMODEL,
                   "the weights of this model are others since its worker was started again");
        blend_let_go(served->first);
    }
}

static int take_ready(struct served *served, const struct work_ready *ready)
{
    struct larder_key fingerprint;
    if (served->state != WORKER_LOADING)
        return larder_fail(LARDER_EPROTO, "it is ready twice");
    if (!memchr(ready->device, 0, sizeof(ready->device)) ||
        !memchr(ready->desc.name, 0, sizeof(ready->desc.name)) || !are_rates(&ready->rates))
        return larder_fail(LARDER_EPROTO, "what it says of itself cannot be");
    LARDER_TRY(larder_model_check(&ready->desc));
    LARDER_TRY(larder_model_fingerprint(&fingerprint, &ready->desc));
    if (served->known && !larder_key_equal(&served->fingerprint, &fingerprint))
        refuse_waiting(served);
    served->fingerprint = fingerprint;
    served->ready = *ready;
    served->known = true;
    served->failed = false;
    served->state = WORKER_READY;
    served->ready_ms = larderd_now_ms();
    char digits[65];
    larder_hex(digits, served->fingerprint.bytes, sizeof(served->fingerprint.bytes));
    larder_log(LARDER_LOG_INFO, "model %s (%.12s) can be blended on %s, by process %d",
               served->model->name, digits, ready->device, (int)served->pid);
    return 0;
}

/* The current blend is at its end at the worker. */
static void end_current(struct served *served)
{
    blend_free(take_current(served));
}

static int take_error(struct served *served, const struct wire_error *error)
{
    struct blend *blend = served->current;
    if (error->code >= 0 || !memchr(error->message, 0, sizeof(error->message)))
        return larder_fail(LARDER_EPROTO, "it sent a malformed error");
    if (blend->state == BLEND_READING) {
        blend->state = BLEND_HELD;
        blend_read_answer(blend, error);
        return 0;
    }
    if (!blend->answered)
        fail_blend(blend, error->code, error->message);
    end_current(served);
    return 0;
}

static int take_blend_ok(struct served *served, const struct work_blend_ok *answer)
{
    struct blend *blend = served->current;
    const struct wire_blend_ok *ok = &answer->ok;
    if (blend->state != BLEND_RUNNING || ok->quality > LARDER_QUALITY_BLENDED || !(ok->kl >= 0) ||
        ok->span_count > LARDER_BLEND_SPANS_MAX(blend->wire.piece_count) ||
        !are_rates(&answer->rates))
        return larder_fail(LARDER_EPROTO, "it sent a malformed answer");
    served->ready.rates = answer->rates;
    served->blends++;
    blend->state = BLEND_HELD;
    blend->held_ms = larderd_now_ms();
    if (!blend->answered)
        blend_answer(blend, NULL, ok);
    return 0;
}

/* A frame with `bytes` bytes in all. */
static int take_frame(struct served *served, const struct wire_frame *frame)
{
    const void *body = frame + 1;
    const size_t bytes = frame->bytes - sizeof(*frame);
    const struct blend *blend = served->current;
    if (frame->type == WORK_READY && bytes == sizeof(struct work_ready))
        return take_ready(served, body);
    /* Of one that failed at the moment it was let go. */
    if (frame->type == WORK_END_OK && (!blend || blend->serial != frame->request))
        return 0;
    if (!blend || blend->serial != frame->request)
        return larder_fail(LARDER_EPROTO, "it answers what nobody asked");
    if (frame->type == WIRE_ERROR && bytes == sizeof(struct wire_error))
        return take_error(served, body);
    if (frame->type == WORK_BLEND_OK && bytes == sizeof(struct work_blend_ok))
        return take_blend_ok(served, body);
    if (frame->type == WORK_READ_OK && bytes == 0 && blend->state == BLEND_READING) {
        served->current->state = BLEND_HELD;
        blend_read_answer(served->current, NULL);
        return 0;
    }
    /* Of one that was given up while it was read. */
    if (frame->type == WORK_READ_OK && bytes == 0 && blend->let_go)
        return 0;
    if (frame->type == WORK_END_OK && bytes == 0 && blend->let_go &&
        blend->state != BLEND_READING) {
        end_current(served);
        return 0;
    }
    return larder_fail(LARDER_EPROTO, "it sent a frame of type %u", frame->type);
}

static void on_readable(evutil_socket_t fd, short what, void *argument)
{
    static _Alignas(8) uint8_t buffer[4096];
    struct served *served = argument;
    (void)what;
    int got = served_receive(fd, buffer, sizeof(buffer));
    if (got == 0)
        return;
    int err = got < 0 ? got : take_frame(served, (const struct wire_frame *)buffer);
    if (err < 0)
        worker_lost(served, larder_error_message());
    else
        pump(served);
}

static void start(struct served *served)
{
    struct larderd *daemon = served->daemon;
    int err = served_spawn(&daemon->config, served->model, &served->pid, &served->fd);
    served->starts++;
    if (err == 0) {
        served->event =
            event_new(daemon->events, served->fd, EV_READ | EV_PERSIST, on_readable, served);
        if (served->event && event_add(served->event, NULL) == 0) {
            served->state = WORKER_LOADING;
            return;
        }
        if (served->event)
            event_free(served->event);
        served->event = NULL;
        close(served->fd);
        served->fd = -1;
        kill(served->pid, SIGKILL);
        served->state = WORKER_DYING;
        larder_fail(-ENOMEM, "no memory for events");
    } else {
        wait_to_start(served);
    }
    served->failed = true;
    larder_log(LARDER_LOG_ERROR, "model %s: %s", served->model->name, larder_error_message());
}

/* --- blends ----------------------------------------------------------------------------------- */

static void begin(struct served *served, struct blend *blend)
{
    const struct session *session = blend->session;
    struct work_blend body = {.blend = blend->wire, .staging_bytes = blend->staging_bytes};
    memcpy(body.tenant, session->tenant.name, sizeof(body.tenant));
    blend->state = BLEND_RUNNING;
    blend->serial = ++served->serials;
    blend->wait_us = larderd_now_us() - blend->began_us;
    served->current = blend;
    served->current_us = larderd_now_us();
    served->tenant_last = session->tenant.index;
    if (served_send(served->fd, WORK_BLEND, blend->serial, &body, sizeof(body), blend->staging_fd) <
        0)
        worker_lost(served, larder_error_message());
}

static void pump(struct served *served)
{
    if (served->state != WORKER_READY || served->current)
        return;
    struct blend *blend = take_next(served);
    if (blend)
        begin(served, blend);
}

int served_submit(struct served *served, struct blend *blend)
{
    if (served->waiting >= LARDER_BLENDS_WAITING_MAX)
        return larder_fail(-EBUSY,
                           "%u blends of model %s wait already, the most that may; try "
                           "later",
                           served->waiting, served->model->name);
    append(served, blend);
    pump(served);
    return 0;
}

void served_read(struct blend *blend, uint64_t request, const struct wire_blend_read *read)
{
    struct served *served = blend->served;
    assert(served->current == blend);
    assert(blend->state == BLEND_HELD);
    blend->state = BLEND_READING;
    blend->read_request = request;
    if (served_send(served->fd, WORK_READ, blend->serial, read, sizeof(*read), -1) < 0)
        worker_lost(served, larder_error_message());
}

void served_let_go(struct blend *blend)
{
    struct served *served = blend->served;
    if (blend->let_go)
        return;
    if (blend->state == BLEND_WAITING) {
        unlink_waiting(served, blend);
        blend_free(blend);
        return;
    }
    assert(served->current == blend);
    blend->let_go = true;
    served->end_ms = larderd_now_ms();
    if (served_send(served->fd, WORK_END, blend->serial, NULL, 0, -1) < 0)
        worker_lost(served, larder_error_message());
}

static void expire(struct blend *blend, uint64_t now_ms)
{
    char message[LARDER_MESSAGE_WIRE_MAX];
    if (blend->abandoned) {
        blend_let_go(blend);
    } else if (!blend->answered && now_ms >= blend->until_ms) {
        snprintf(message, sizeof(message), "not blended within %u ms (%s)", blend->wire.deadline_ms,
                 blend->state == BLEND_WAITING ? "it waited for the worker" : "it was being done");
        fail_blend(blend, -ETIMEDOUT, message);
        blend_let_go(blend);
    } else if (blend->state >= BLEND_HELD && !blend->let_go &&
               now_ms > blend->held_ms + blend->session->daemon->config.lease_ms) {
        larder_log(LARDER_LOG_WARN, "pid %d held a blend for more than lease_ms; it is gone",
                   blend->session->pid);
        if (blend->state == BLEND_READING)
            fail_read(blend, "that blend was held for longer than lease_ms");
        blend_let_go(blend);
    }
}

static void tick(struct served *served, uint64_t now_ms)
{
    struct blend *next;
    if (served->current)
        expire(served->current, now_ms);
    for (struct blend *blend = served->first; blend; blend = next) {
        next = blend->next;
        expire(blend, now_ms);
    }
    if (served->current && served->current->let_go && now_ms > served->end_ms + END_MS)
        worker_lost(served, "it does not give up a blend; killed");
    if (served->state == WORKER_DYING)
        reap(served, WNOHANG);
    if (served->state == WORKER_DOWN && now_ms >= served->start_ms)
        start(served);
    pump(served);
}

void served_tick(struct served_models *models, uint64_t now_ms)
{
    for (uint32_t i = 0; i < models->count && !models->stopped; i++)
        tick(&models->all[i], now_ms);
}

/* --- which ------------------------------------------------------------------------------------ */

static int none_found(const struct served_models *models, const char *name,
                      const struct larder_key *fingerprint)
{
    char digits[65];
    char served_names[160] = "";
    size_t used = 0;
    larder_hex(digits, fingerprint->bytes, sizeof(fingerprint->bytes));
    /* One that is loading may be it, whatever others of its name there are. */
    for (uint32_t i = 0; i < models->count; i++) {
        if (!models->all[i].known && !models->all[i].failed)
            return larder_fail(-EBUSY, "model %s is still being loaded; try again soon",
                               models->all[i].model->name);
    }
    for (uint32_t i = 0; i < models->count; i++) {
        const struct served *served = &models->all[i];
        char own[65];
        larder_hex(own, served->fingerprint.bytes, sizeof(served->fingerprint.bytes));
        if (served->known &&
            (strcmp(served->ready.desc.name, name) == 0 || strcmp(served->model->name, name) == 0))
            return larder_fail(LARDER_EMODEL,
                               "model %s: larderd's weights of that name are %.12s, yours %.12s: "
                               "other weights, dtype of KV or RoPE",
                               name, own, digits);
        int got =
            snprintf(served_names + used, sizeof(served_names) - used, "%s%s%s", used ? ", " : "",
                     served->model->name, served->known ? "" : " (does not start)");
        used += (size_t)got < sizeof(served_names) - used ? (size_t)got : 0;
    }
    return larder_fail(LARDER_EUNSUPPORTED,
                       "larderd has no weights of model \"%.32s\" (%.12s); it has: %s; start it "
                       "with --model NAME=DIR",
                       name, digits, used ? served_names : "none");
}

int served_find(struct served_models *models, struct served **out, const char *name,
                const struct larder_key *fingerprint)
{
    *out = NULL;
    if (models->stopped)
        return larder_fail(LARDER_EDOWN, "larderd stops");
    for (uint32_t i = 0; i < models->count; i++) {
        struct served *served = &models->all[i];
        if (served->known && larder_key_equal(&served->fingerprint, fingerprint)) {
            *out = served;
            return 0;
        }
    }
    return none_found(models, name, fingerprint);
}

void served_describe(const struct served *served, struct wire_worker_ok *out)
{
    *out = (struct wire_worker_ok){.ready = served->state == WORKER_READY,
                                   .waiting = served->waiting + (served->current != NULL),
                                   .positions_max = served->ready.positions_max,
                                   .start = served->ready.start,
                                   .row_ns = served->ready.rates.row_ns,
                                   .pair_ns = served->ready.rates.pair_ns};
    memcpy(out->name, served->model->name, sizeof(out->name));
    memcpy(out->device, served->ready.device, sizeof(out->device));
    memcpy(out->method, served->model->method, sizeof(out->method));
}

int served_at(const struct served_models *models, struct wire_admin_worker_ok *out, uint32_t index)
{
    if (index >= models->count)
        return larder_fail(LARDER_ENOTFOUND, "there are %u models with a worker", models->count);
    const struct served *served = &models->all[index];
    *out = (struct wire_admin_worker_ok){
        .index = index,
        .state = served->state == WORKER_READY     ? WIRE_WORKER_READY
                 : served->state == WORKER_LOADING ? WIRE_WORKER_LOADING
                                                   : WIRE_WORKER_DOWN,
        .pid = (uint64_t)served->pid,
        .starts = served->starts,
        .blends = served->blends,
        .failures = served->failures,
        .busy_us = served->busy_us + (served->current ? larderd_now_us() - served->current_us : 0)};
    memcpy(out->fingerprint, served->fingerprint.bytes, sizeof(out->fingerprint));
    served_describe(served, &out->worker);
    return 0;
}

/* --- life ------------------------------------------------------------------------------------- */

int served_open(struct served_models **out, struct larderd *daemon)
{
    *out = NULL;
    const struct config *config = &daemon->config;
    struct served_models *models =
        larder_alloc_zero(1, sizeof(*models) + config->model_count * sizeof(models->all[0]));
    if (!models)
        return larder_fail(-ENOMEM, "no memory for models");
    models->count = config->model_count;
    for (uint32_t i = 0; i < models->count; i++) {
        struct served *served = &models->all[i];
        served->daemon = daemon;
        served->model = &config->models[i];
        served->fd = -1;
        served->last_next = &served->first;
        served->tenant_last = LARDER_TENANTS_MAX;
    }
    *out = models;
    return 0;
}

void served_stop(struct served_models *models)
{
    models->stopped = true;
    for (uint32_t i = 0; i < models->count; i++) {
        struct served *served = &models->all[i];
        while (served->first) {
            fail_blend(served->first, LARDER_EDOWN, "larderd stops");
            blend_let_go(served->first);
        }
        if (served->current && !served->current->answered)
            fail_blend(served->current, LARDER_EDOWN, "larderd stops");
        if (served->state == WORKER_LOADING || served->state == WORKER_READY)
            worker_lost(served, "larderd stops");
    }
}

void served_close(struct served_models *models)
{
    if (!models)
        return;
    served_stop(models);
    for (uint32_t i = 0; i < models->count; i++) {
        if (models->all[i].state == WORKER_DYING)
            reap(&models->all[i], 0);
    }
    larder_free(models);
}
