/* SPDX-License-Identifier: Apache-2.0 */
#include "base/key.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <openssl/evp.h>

#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"

const struct larder_key larder_key_root;

struct larder_hasher {
    EVP_MD *sha256;
    EVP_MD_CTX *prefix;  /* tenant key, "larder1", fingerprint are in it */
    EVP_MD_CTX *running; /* a copy of it, continued for each block */
};

static int put_part(EVP_MD_CTX *ctx, const void *bytes, size_t count)
{
    uint32_t length = (uint32_t)count;
    if (EVP_DigestUpdate(ctx, &length, sizeof(length)) != 1 ||
        EVP_DigestUpdate(ctx, bytes, count) != 1)
        return larder_fail(-EIO, "SHA-256 of libcrypto failed");
    return 0;
}

int larder_hasher_open(struct larder_hasher **out, const uint8_t tenant_key[32],
                       const struct larder_key *fingerprint)
{
    *out = NULL;
    struct larder_hasher *hasher = larder_alloc_zero(1, sizeof(*hasher));
    if (!hasher)
        return larder_fail(-ENOMEM, "no memory for a hasher");
    hasher->sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    hasher->prefix = EVP_MD_CTX_new();
    hasher->running = EVP_MD_CTX_new();
    int err = 0;
    if (!hasher->sha256 || !hasher->prefix || !hasher->running ||
        EVP_DigestInit_ex2(hasher->prefix, hasher->sha256, NULL) != 1)
        err = larder_fail(-ENOMEM, "libcrypto gave no SHA-256 context");
    if (err == 0)
        err = put_part(hasher->prefix, tenant_key, 32);
    if (err == 0)
        err = put_part(hasher->prefix, "larder1", 7);
    if (err == 0)
        err = put_part(hasher->prefix, fingerprint->bytes, sizeof(fingerprint->bytes));
    if (err < 0) {
        larder_hasher_close(hasher);
        return err;
    }
    *out = hasher;
    return 0;
}

void larder_hasher_close(struct larder_hasher *hasher)
{
    if (!hasher)
        return;
    EVP_MD_CTX_free(hasher->running);
    EVP_MD_CTX_free(hasher->prefix);
    EVP_MD_free(hasher->sha256);
    larder_free(hasher);
}

int larder_hasher_block(struct larder_hasher *hasher, struct larder_key *out,
                        const struct larder_key *parent, const void *extra, size_t extra_bytes,
                        const uint32_t *tokens, size_t count)
{
    assert(count <= LARDER_BLOCK_TOKENS_MAX);
    assert(extra_bytes <= LARDER_EXTRA_BYTES_MAX);
    uint32_t n = (uint32_t)count;
    if (EVP_MD_CTX_copy_ex(hasher->running, hasher->prefix) != 1)
        return larder_fail(-ENOMEM, "libcrypto could not copy a SHA-256 context");
    LARDER_TRY(put_part(hasher->running, parent->bytes, sizeof(parent->bytes)));
    LARDER_TRY(put_part(hasher->running, extra_bytes ? extra : "", extra_bytes));
    LARDER_TRY(put_part(hasher->running, &n, sizeof(n)));
    LARDER_TRY(put_part(hasher->running, tokens, count * sizeof(*tokens)));
    if (EVP_DigestFinal_ex(hasher->running, out->bytes, NULL) != 1)
        return larder_fail(-EIO, "SHA-256 of libcrypto failed");
    return 0;
}

int larder_sha256(struct larder_key *out, const void *bytes, size_t count)
{
    if (EVP_Digest(bytes, count, out->bytes, NULL, EVP_sha256(), NULL) != 1)
        return larder_fail(-EIO, "SHA-256 of libcrypto failed");
    return 0;
}

static int check_range(const char *field, uint64_t value, uint64_t least, uint64_t most)
{
    if (value < least || value > most)
        return larder_fail(LARDER_ELIMIT, "model: %s=%llu is not within %llu..%llu", field,
                           (unsigned long long)value, (unsigned long long)least,
                           (unsigned long long)most);
    return 0;
}

static int check_finite(const char *field, double value)
{
    if (!isfinite(value))
        return larder_fail(LARDER_EMODEL, "model: rope %s is not a finite number", field);
    return 0;
}

static int check_rope(const struct larder_rope *rope, uint32_t k_dims)
{
    if (rope->kind > LARDER_ROPE_YARN)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "model: rope kind %u is unknown; known are 0..%d (none, plain, linear, "
                           "llama3, yarn)",
                           rope->kind, LARDER_ROPE_YARN);
    LARDER_TRY(check_finite("theta", rope->theta));
    LARDER_TRY(check_finite("factor", rope->factor));
    LARDER_TRY(check_finite("low_freq_factor", rope->low_freq_factor));
    LARDER_TRY(check_finite("high_freq_factor", rope->high_freq_factor));
    LARDER_TRY(check_finite("beta_fast", rope->beta_fast));
    LARDER_TRY(check_finite("beta_slow", rope->beta_slow));
    LARDER_TRY(check_finite("attention_factor", rope->attention_factor));
    if (rope->kind == LARDER_ROPE_NONE)
        return 0;
    LARDER_TRY(check_range("rope interleaved", rope->interleaved, 0, 1));
    LARDER_TRY(check_range("rope rotary_dims", rope->rotary_dims, 2, k_dims));
    if (rope->rotary_dims % 2 != 0)
        return larder_fail(LARDER_EMODEL, "model: rope rotary_dims=%u is odd", rope->rotary_dims);
    if (rope->theta <= 1)
        return larder_fail(LARDER_EMODEL, "model: rope theta=%g is not above 1", rope->theta);
    if (rope->kind != LARDER_ROPE_PLAIN && rope->factor < 1)
        return larder_fail(LARDER_EMODEL, "model: rope factor=%g is below 1", rope->factor);
    return 0;
}

int larder_model_check(const struct larder_model_desc *model)
{
    LARDER_TRY(check_range("layers", model->layers, 1, LARDER_LAYERS_MAX));
    LARDER_TRY(check_range("kv_heads", model->kv_heads, 1, LARDER_KV_HEADS_MAX));
    LARDER_TRY(check_range("k_dims", model->k_dims, 1, LARDER_HEAD_DIMS_MAX));
    LARDER_TRY(check_range("v_dims", model->v_dims, 1, LARDER_HEAD_DIMS_MAX));
    LARDER_TRY(check_range("vocab", model->vocab, 1, LARDER_VOCAB_MAX));
    if (larder_dtype_bytes(model->dtype) == 0)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "model: dtype %u is unknown; known are 1 (f32), 2 (f16), 3 (bf16)",
                           model->dtype);
    if (!memchr(model->name, '\0', sizeof(model->name)))
        return larder_fail(LARDER_EMODEL, "model: name is not NUL-terminated within %zu bytes",
                           sizeof(model->name));
    return check_rope(&model->rope, model->k_dims);
}

int larder_model_fingerprint(struct larder_key *out, const struct larder_model_desc *model)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    if (!ctx)
        return larder_fail(-ENOMEM, "libcrypto gave no SHA-256 context");
    const struct larder_rope *rope = &model->rope;
    const uint32_t shape[] = {model->layers,     model->kv_heads,
                              model->k_dims,     model->v_dims,
                              model->dtype,      model->vocab,
                              rope->kind,        rope->interleaved,
                              rope->rotary_dims, rope->original_max_position};
    const double angles[] = {
        rope->theta,     rope->factor,    rope->low_freq_factor, rope->high_freq_factor,
        rope->beta_fast, rope->beta_slow, rope->attention_factor};
    int err = 0;
    if (EVP_DigestInit_ex2(ctx, EVP_sha256(), NULL) != 1)
        err = larder_fail(-EIO, "SHA-256 of libcrypto failed");
    if (err == 0)
        err = put_part(ctx, "larder model 1", 14);
    if (err == 0)
        err = put_part(ctx, model->weights, sizeof(model->weights));
    if (err == 0)
        err = put_part(ctx, shape, sizeof(shape));
    if (err == 0)
        err = put_part(ctx, angles, sizeof(angles));
    if (err == 0 && EVP_DigestFinal_ex(ctx, out->bytes, NULL) != 1)
        err = larder_fail(-EIO, "SHA-256 of libcrypto failed");
    EVP_MD_CTX_free(ctx);
    return err;
}

uint64_t larder_model_kv_bytes(const struct larder_model_desc *model, uint64_t tokens)
{
    return tokens * model->layers * model->kv_heads * (model->k_dims + model->v_dims) *
           larder_dtype_bytes(model->dtype);
}
