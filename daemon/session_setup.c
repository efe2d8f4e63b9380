/* SPDX-License-Identifier: Apache-2.0 */
/* session_setup.c - WIRE_HELLO and WIRE_MODEL: who the client is, and which models it means.
 * Both may write to disk the first time, so they run on a worker while the session is not read.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "daemon/session_priv.h"
#include "daemon/workers.h"

struct setup {
    struct job job;
    struct completion completion;
    struct session *session;
    uint64_t request;
    struct larder_tenant_info tenant;
    struct session_model *model; /* NULL: it is about the tenant */
    enum larder_quality quality; /* of the model's default recipe, and what it keeps */
    float max_kl;
    bool known_only; /* the tenant has described as many models as it may: no new one */
    int err;
    char message[LARDER_MESSAGE_BYTES_MAX];
};

static struct setup *setup_of_completion(struct completion *completion)
{
    return (struct setup *)((char *)completion - offsetof(struct setup, completion));
}

/* A model that the store knows already. */
static int find_model(struct larderd *daemon, struct larder_model_info *info)
{
    struct larder_key fingerprint;
    LARDER_TRY(larder_model_fingerprint(&fingerprint, &info->desc));
    const struct larder_model_desc desc = info->desc;
    for (uint32_t i = 0; larder_store_model_at(daemon->store, info, i) == 0; i++) {
        if (larder_key_equal(&info->fingerprint, &fingerprint))
            return larder_store_model(daemon->store, info, &desc);
    }
    return larder_fail(LARDER_ELIMIT,
                       "this tenant has described %u new models, the most that one may; they are "
                       "forgotten when larderd is started again",
                       ACCOUNTS_TENANT_MODELS_MAX);
}

static void setup_run(struct job *job, struct scratch *scratch)
{
    struct setup *setup = (struct setup *)((char *)job - offsetof(struct setup, job));
    struct larderd *daemon = setup->session->daemon;
    (void)scratch;
    if (setup->model) {
        struct larder_model_desc desc = setup->model->info.desc;
        setup->err = setup->known_only
                         ? find_model(daemon, &setup->model->info)
                         : larder_store_model(daemon->store, &setup->model->info, &desc);
        setup->model->is_held = setup->err == 0;
        if (setup->err == 0)
            setup->err = larder_hasher_open(&setup->model->hasher, setup->session->tenant.key,
                                            &setup->model->info.fingerprint);
        if (setup->err == 0)
            larder_store_prepare(daemon->store, setup->session->tenant.index);
    } else {
        setup->err =
            larder_store_tenant(daemon->store, &setup->tenant, setup->session->tenant_name);
    }
    if (setup->err < 0)
        snprintf(setup->message, sizeof(setup->message), "%s", larder_error_message());
    completions_post(daemon->completions, &setup->completion);
}

static struct setup *setup_new(struct session *session, uint64_t request,
                               void (*run)(struct completion *))
{
    struct setup *setup = larder_alloc_zero(1, sizeof(*setup));
    if (!setup) {
        larder_fail(-ENOMEM, "no memory for a request");
        return NULL;
    }
    setup->session = session;
    setup->request = request;
    setup->job.run = setup_run;
    setup->completion.run = run;
    return setup;
}

static void setup_submit(struct setup *setup)
{
    session_pause(setup->session, PAUSE_SETUP);
    workers_submit(setup->session->daemon->workers, WORKERS_OWN, &setup->job);
}

/* --- hello ------------------------------------------------------------------------------------ */

static void answer_hello(struct session *session, uint64_t request)
{
    const struct larderd *daemon = session->daemon;
    const struct config *config = &daemon->config;
    struct wire_hello_ok ok = {.magic = WIRE_MAGIC,
                               .version = WIRE_VERSION,
                               .block_tokens = config->block_tokens,
                               .lease_ms = config->lease_ms,
                               .staging_bytes_max = config->staging_bytes_max};
    memcpy(ok.tenant_id, session->tenant.id, sizeof(ok.tenant_id));
    memcpy(ok.tenant_key, session->tenant.key, sizeof(ok.tenant_key));
    memcpy(ok.tenant_name, session->tenant.name, sizeof(ok.tenant_name));
    snprintf(ok.daemon_version, sizeof(ok.daemon_version), "%s", LARDER_VERSION);
    const char *recipe = config->recipe.text;
    if (strlen(recipe) < sizeof(ok.recipe))
        memcpy(ok.recipe, recipe, strlen(recipe));
    session->state = SESSION_READY;
    session_reply(session, WIRE_HELLO_OK, request, &ok, sizeof(ok));
}

static const struct larder_tenant_info *find_tenant(const struct larderd *daemon, const char *name)
{
    for (uint32_t i = 0; i < daemon->tenant_count; i++) {
        if (strcmp(daemon->tenants[i].name, name) == 0)
            return &daemon->tenants[i];
    }
    return NULL;
}

void larderd_set_quotas(struct larderd *daemon)
{
    struct larder_tenant_info info;
    for (uint32_t i = 0; larder_store_tenant_at(daemon->store, &info, i) == 0; i++) {
        const struct tenant_quota *named = config_find_quota(&daemon->config, info.name);
        struct larder_quota quota = {0};
        if (named)
            quota = (struct larder_quota){named->ssd_bytes, named->host_bytes};
        larder_store_set_quota(daemon->store, i, &quota);
    }
}

/* Without memory it is looked up again the next time. */
static void remember_tenant(struct larderd *daemon, const struct larder_tenant_info *info)
{
    if (find_tenant(daemon, info->name))
        return;
    struct larder_tenant_info *tenants =
        larder_realloc(daemon->tenants, (daemon->tenant_count + 1) * sizeof(*tenants));
    if (!tenants)
        return;
    tenants[daemon->tenant_count++] = *info;
    daemon->tenants = tenants;
}

static void tenant_done(struct completion *completion)
{
    struct setup *setup = setup_of_completion(completion);
    struct session *session = setup->session;
    /* It may have been purged since the worker asked: its keys are others then. */
    if (setup->err == 0)
        setup->err =
            larder_store_tenant_at(session->daemon->store, &setup->tenant, setup->tenant.index);
    if (setup->err == 0) {
        if (!find_tenant(session->daemon, setup->tenant.name))
            larderd_set_quotas(session->daemon);
        remember_tenant(session->daemon, &setup->tenant);
        session->tenant = setup->tenant;
    }
    if (session->state != SESSION_CLOSED && setup->err == 0) {
        answer_hello(session, setup->request);
        session_resume(session, PAUSE_SETUP);
    } else if (session->state != SESSION_CLOSED) {
        larder_log(LARDER_LOG_ERROR, "tenant '%s' cannot be opened: %s", session->tenant_name,
                   setup->message);
        session_fail_text(session, setup->request, setup->err, setup->message);
        session_close(session);
    }
    session_end(session);
    larder_free(setup);
}

int session_hello(struct session *session, const struct frame *frame)
{
    const struct wire_hello *hello = frame->body;
    if (hello->version_min > WIRE_VERSION || hello->version_max < WIRE_VERSION) {
        int err = larder_fail(LARDER_EVERSION,
                              "the client speaks protocol %u to %u, larderd " LARDER_VERSION
                              " speaks %u; use a client library of the same release",
                              hello->version_min, hello->version_max, WIRE_VERSION);
        session_fail(session, frame->request, err);
        session_close(session);
        return 0;
    }
    const struct larder_tenant_info *known = find_tenant(session->daemon, session->tenant_name);
    if (known || session->side == FRAME_CONTROL) {
        if (known)
            session->tenant = *known;
        answer_hello(session, frame->request);
        return 0;
    }
    struct setup *setup = setup_new(session, frame->request, tenant_done);
    if (!setup)
        return -ENOMEM;
    int err = session_begin(session);
    if (err < 0) {
        larder_free(setup);
        return err;
    }
    session->state = SESSION_SETUP;
    setup_submit(setup);
    return 0;
}

/* --- models ----------------------------------------------------------------------------------- */

static void model_free(struct session *session, struct session_model *model)
{
    if (!model)
        return;
    if (model->is_held)
        larder_store_model_release(session->daemon->store, model->info.index);
    larder_hasher_close(model->hasher);
    larder_free(model->recipe);
    larder_free(model);
}

void session_models_free(struct session *session)
{
    for (uint32_t i = 0; i < session->model_count; i++)
        model_free(session, session->models[i]);
}

struct session_model *session_model_of(struct session *session, uint32_t handle)
{
    if (handle < session->model_count)
        return session->models[handle];
    larder_fail(LARDER_EPROTO, "model handle %u was not given on this connection, which has %u",
                handle, session->model_count);
    return NULL;
}

/* A model that the connection described before keeps its handle. */
static uint32_t place_model(struct session *session, struct setup *setup)
{
    const struct session_model *model = setup->model;
    for (uint32_t i = 0; i < session->model_count; i++) {
        if (session->models[i]->info.index == model->info.index)
            return i;
    }
    session->models[session->model_count] = setup->model;
    setup->model = NULL;
    return session->model_count++;
}

/* What the model's blocks are encoded with by default; what is changed later is for those that
 * open it then. */
static int set_recipe(struct session *session, struct setup *setup)
{
    struct session_model *model = setup->model;
    const struct recipe_choice *choice =
        config_find_recipe(&session->daemon->config, session->tenant.name, &model->info.desc,
                           &model->info.fingerprint);
    setup->quality = choice->quality;
    setup->max_kl = choice->max_kl;
    model->recipe = larder_strdup(choice->text);
    if (model->recipe)
        return 0;
    snprintf(setup->message, sizeof(setup->message), "no memory for a recipe");
    return -ENOMEM;
}

static void model_done(struct completion *completion)
{
    struct setup *setup = setup_of_completion(completion);
    struct session *session = setup->session;
    if (!setup->known_only)
        accounts_model_end(&session->daemon->accounts, session->tenant.index,
                           setup->err == 0 ? setup->model->info.index : LARDER_MODELS_MAX);
    if (setup->err == 0)
        setup->err = set_recipe(session, setup);
    if (setup->err == 0) {
        uint32_t handle = place_model(session, setup);
        struct wire_model_ok ok = {
            .model = handle, .quality = setup->quality, .max_kl = setup->max_kl};
        memcpy(ok.fingerprint, session->models[handle]->info.fingerprint.bytes,
               sizeof(ok.fingerprint));
        session_reply(session, WIRE_MODEL_OK, setup->request, &ok, sizeof(ok));
    } else {
        session_fail_text(session, setup->request, setup->err, setup->message);
    }
    session_resume(session, PAUSE_SETUP);
    model_free(session, setup->model);
    session_end(session);
    larder_free(setup);
}

int session_model(struct session *session, const struct frame *frame)
{
    const struct wire_model *wire = frame->body;
    LARDER_TRY(larder_model_check(&wire->desc));
    if (session->model_count == LARDER_SESSION_MODELS_MAX)
        return larder_fail(LARDER_ELIMIT, "a connection describes at most %u models; open another",
                           LARDER_SESSION_MODELS_MAX);
    struct setup *setup = setup_new(session, frame->request, model_done);
    if (!setup)
        return -ENOMEM;
    int err = session_begin(session);
    if (err < 0)
        goto fail_free;
    setup->model = larder_alloc_zero(1, sizeof(*setup->model));
    if (!setup->model) {
        err = larder_fail(-ENOMEM, "no memory for a model");
        goto fail_end;
    }
    setup->model->info.desc = wire->desc;
    setup->known_only = !accounts_model_begin(&session->daemon->accounts, session->tenant.index);
    setup_submit(setup);
    return 0;

fail_end:
    session_end(session);
fail_free:
    larder_free(setup);
    return err;
}
