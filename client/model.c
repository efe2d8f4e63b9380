/* SPDX-License-Identifier: Apache-2.0 */
/* The model's identity and its registration on each link. */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "client/chain.h"

static int register_model(struct larder_model *model, struct larder_link *link,
                          struct wire_model_ok *answer)
{
    struct client_call call = {
        .type = WIRE_MODEL,
        .answer_type = WIRE_MODEL_OK,
        .answer = answer,
        .answer_capacity = sizeof(*answer),
    };
    const struct client_part part = {&model->desc, sizeof(model->desc)};
    LARDER_TRY(client_call(link, &call, NULL, &part, 1));
    if (call.answer_bytes != sizeof(*answer) || answer->quality > LARDER_QUALITY_BLENDED ||
        client_check_kl("max_kl", answer->max_kl) < 0) {
        client_link_fail(link, LARDER_EPROTO, "the daemon's answer about a model is malformed");
        return larder_fail(LARDER_EPROTO, "the daemon's answer about a model is malformed");
    }
    if (memcmp(answer->fingerprint, model->fingerprint.bytes, sizeof(answer->fingerprint)) != 0)
        return larder_fail(LARDER_EMODEL,
                           "the daemon computes another fingerprint of model \"%s\"; "
                           "are library and daemon of one release?",
                           model->desc.name);
    return 0;
}

/* What belongs to an older link is dropped: the daemon behind this one may have other tenants. */
static void enter_epoch_locked(struct larder_model *model, const struct larder_link *link)
{
    if (model->epoch == link->epoch)
        return;
    model->epoch = link->epoch;
    model->handle = 0;
    model->registered = false;
    larder_hasher_close(model->hasher);
    model->hasher = NULL;
}

int client_model_handle(struct larder_model *model, struct larder_link *link, uint32_t *handle)
{
    struct wire_model_ok answer;
    struct larder *larder = link->larder;
    pthread_mutex_lock(&larder->lock);
    bool known = model->epoch == link->epoch && model->registered;
    *handle = model->handle;
    pthread_mutex_unlock(&larder->lock);
    if (known)
        return 0;
    LARDER_TRY(register_model(model, link, &answer));
    *handle = answer.model;
    pthread_mutex_lock(&larder->lock);
    /* A call on an older link may come back late: it must not replace what is newer. */
    if (model->epoch <= link->epoch) {
        enter_epoch_locked(model, link);
        model->handle = *handle;
        model->quality = (enum larder_quality)answer.quality;
        model->max_kl = answer.max_kl;
        model->registered = true;
    }
    pthread_mutex_unlock(&larder->lock);
    return 0;
}

int client_hasher_take(struct larder_model *model, struct larder_link *link,
                       struct larder_hasher **out)
{
    struct larder *larder = link->larder;
    *out = NULL;
    pthread_mutex_lock(&larder->lock);
    if (model->epoch == link->epoch) {
        *out = model->hasher;
        model->hasher = NULL;
    }
    pthread_mutex_unlock(&larder->lock);
    if (*out)
        return 0;
    return larder_hasher_open(out, link->hello.tenant_key, &model->fingerprint);
}

void client_hasher_give(struct larder_model *model, struct larder_link *link,
                        struct larder_hasher *hasher)
{
    struct larder *larder = link->larder;
    pthread_mutex_lock(&larder->lock);
    if (model->epoch == link->epoch && !model->hasher) {
        model->hasher = hasher;
        hasher = NULL;
    }
    pthread_mutex_unlock(&larder->lock);
    larder_hasher_close(hasher);
}

int larder_model_open(struct larder *larder, struct larder_model **out,
                      const struct larder_model_desc *desc)
{
    *out = NULL;
    LARDER_TRY(larder_model_check(desc));
    struct larder_model *model = larder_alloc_zero(1, sizeof(*model));
    if (!model)
        return larder_fail(-ENOMEM, "no memory for a model");
    model->larder = larder;
    model->desc = *desc;
    model->token_bytes = larder_model_kv_bytes(desc, 1);
    int err = larder_model_fingerprint(&model->fingerprint, desc);
    struct larder_link *link = NULL;
    uint32_t handle;
    if (err == 0)
        err = client_link_acquire(larder, &link);
    if (err == 0)
        err = client_model_handle(model, link, &handle);
    if (link)
        client_link_release(link);
    if (err < 0) {
        larder_model_close(model);
        return err;
    }
    *out = model;
    return 0;
}

void larder_model_close(struct larder_model *model)
{
    if (!model)
        return;
    larder_hasher_close(model->hasher);
    larder_free(model);
}
