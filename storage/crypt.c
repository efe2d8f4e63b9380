/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/crypt.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"

/* --- memory and randomness -------------------------------------------------------------------- */

void *crypt_secret_alloc(size_t bytes)
{
    bytes = larder_round_up(bytes, LARDER_PAGE_BYTES);
    void *secret = larder_alloc_aligned(LARDER_PAGE_BYTES, bytes);
    if (!secret)
        return NULL;
    memset(secret, 0, bytes);
    static atomic_flag said = ATOMIC_FLAG_INIT;
    if (mlock(secret, bytes) != 0 && !atomic_flag_test_and_set(&said))
        larder_log(LARDER_LOG_WARN,
                   "keys cannot be locked in memory (%s): raise the limit of locked memory "
                   "(LimitMEMLOCK=), or use no swap that is not encrypted",
                   larder_error_text(-errno));
    madvise(secret, bytes, MADV_DONTDUMP);
    return secret;
}

void crypt_secret_free(void *secret, size_t bytes)
{
    if (!secret)
        return;
    bytes = larder_round_up(bytes, LARDER_PAGE_BYTES);
    OPENSSL_cleanse(secret, bytes);
    /* The allocator may give these pages to others. */
    madvise(secret, bytes, MADV_DODUMP);
    munlock(secret, bytes);
    larder_free(secret);
}

void crypt_wipe(void *bytes, size_t count)
{
    OPENSSL_cleanse(bytes, count);
}

int crypt_random(void *out, size_t bytes)
{
    uint8_t *at = out;
    while (bytes > 0) {
        ssize_t got = getrandom(at, bytes, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return larder_fail(-errno, "getrandom: %s", larder_error_text(-errno));
        at += got;
        bytes -= (size_t)got;
    }
    return 0;
}

/* --- keys ------------------------------------------------------------------------------------- */

int crypt_derive(uint8_t out[CRYPT_KEY_BYTES], const uint8_t key[CRYPT_KEY_BYTES],
                 const uint8_t *salt, size_t salt_bytes, const char *info)
{
    EVP_KDF *hkdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    EVP_KDF_CTX *ctx = hkdf ? EVP_KDF_CTX_new(hkdf) : NULL;
    OSSL_PARAM params[] = {
        OSSL_PARAM_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)"SHA256", 6),
        OSSL_PARAM_octet_string(OSSL_KDF_PARAM_KEY, (void *)(uintptr_t)key, CRYPT_KEY_BYTES),
        OSSL_PARAM_octet_string(OSSL_KDF_PARAM_SALT, (void *)(uintptr_t)salt, salt_bytes),
        OSSL_PARAM_octet_string(OSSL_KDF_PARAM_INFO, (void *)(uintptr_t)info, strlen(info)),
        OSSL_PARAM_END,
    };
    bool good = ctx && EVP_KDF_derive(ctx, out, CRYPT_KEY_BYTES, params) == 1;
    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(hkdf);
    return good ? 0 : larder_fail(-ENOMEM, "HKDF of libcrypto failed");
}

/* `text` is zeros behind its bytes. */
static int parse_key(uint8_t out[CRYPT_KEY_BYTES], const char *path, char *text, size_t bytes)
{
    if (bytes == CRYPT_KEY_BYTES) {
        memcpy(out, text, CRYPT_KEY_BYTES);
        return 0;
    }
    if (bytes == 2 * CRYPT_KEY_BYTES + 1 && text[bytes - 1] == '\n')
        text[--bytes] = '\0';
    if (bytes == 2 * CRYPT_KEY_BYTES && strlen(text) == bytes &&
        larder_unhex(out, CRYPT_KEY_BYTES, text) == 0)
        return 0;
    return larder_fail(
        LARDER_ECONFIG,
        "key_file %s holds neither 32 bytes nor 64 hexadecimal digits; make one with "
        "\"head -c 32 /dev/urandom\", and keep a copy elsewhere",
        path);
}

int crypt_read_key_file(uint8_t out[CRYPT_KEY_BYTES], const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return larder_fail(LARDER_ECONFIG, "key_file %s cannot be opened: %s", path,
                           larder_error_text(-errno));
    int err = 0;
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        err = larder_fail(LARDER_ECONFIG, "key_file %s is not a file", path);
    else if (st.st_mode & (S_IRWXG | S_IRWXO))
        err = larder_fail(LARDER_ECONFIG,
                          "key_file %s has mode %03o, so that others than its owner may use it; "
                          "chmod 600 it",
                          path, (unsigned)st.st_mode & 0777);
    else if (st.st_uid != geteuid() && st.st_uid != 0)
        err = larder_fail(LARDER_ECONFIG,
                          "key_file %s belongs to user %u; it must be that of the daemon (%u) or "
                          "root",
                          path, (unsigned)st.st_uid, (unsigned)geteuid());
    char text[2 * CRYPT_KEY_BYTES + 4] = {0};
    ssize_t got = err < 0 ? 0 : read(fd, text, sizeof(text) - 1);
    if (got < 0)
        err = larder_fail(LARDER_ECONFIG, "key_file %s cannot be read: %s", path,
                          larder_error_text(-errno));
    close(fd);
    if (err == 0)
        err = parse_key(out, path, text, (size_t)got);
    OPENSSL_cleanse(text, sizeof(text));
    return err;
}

/* --- AES-256-GCM ------------------------------------------------------------------------------ */

struct crypt {
    EVP_CIPHER *cipher;
    EVP_CIPHER_CTX *ctx;
};

int crypt_open(struct crypt **out)
{
    *out = NULL;
    struct crypt *crypt = larder_alloc_zero(1, sizeof(*crypt));
    if (!crypt)
        return larder_fail(-ENOMEM, "no memory for a cipher");
    crypt->cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    crypt->ctx = EVP_CIPHER_CTX_new();
    if (!crypt->cipher || !crypt->ctx) {
        crypt_close(crypt);
        return larder_fail(-ENOMEM, "libcrypto gave no AES-256-GCM");
    }
    *out = crypt;
    return 0;
}

void crypt_close(struct crypt *crypt)
{
    if (!crypt)
        return;
    EVP_CIPHER_CTX_free(crypt->ctx);
    EVP_CIPHER_free(crypt->cipher);
    larder_free(crypt);
}

bool crypt_set_key(struct crypt *crypt, const uint8_t key[CRYPT_KEY_BYTES])
{
    return EVP_CipherInit_ex2(crypt->ctx, crypt->cipher, key, NULL, 1, NULL) == 1;
}

bool crypt_seal_begin(struct crypt *crypt, const uint8_t nonce[CRYPT_NONCE_BYTES])
{
    return EVP_CipherInit_ex2(crypt->ctx, NULL, NULL, nonce, 1, NULL) == 1;
}

bool crypt_open_begin(struct crypt *crypt, const uint8_t nonce[CRYPT_NONCE_BYTES])
{
    return EVP_CipherInit_ex2(crypt->ctx, NULL, NULL, nonce, 0, NULL) == 1;
}

/* libcrypto counts in int. */
#define CHUNK_BYTES (1u << 30)

bool crypt_add(struct crypt *crypt, const void *bytes, size_t count)
{
    int done;
    assert(count <= CHUNK_BYTES);
    return EVP_CipherUpdate(crypt->ctx, NULL, &done, bytes, (int)count) == 1;
}

bool crypt_update(struct crypt *crypt, void *out, const void *in, size_t count)
{
    uint8_t *to = out;
    const uint8_t *from = in;
    while (count > 0) {
        int done;
        size_t now = count < CHUNK_BYTES ? count : CHUNK_BYTES;
        if (EVP_CipherUpdate(crypt->ctx, to, &done, from, (int)now) != 1)
            return false;
        to += now;
        from += now;
        count -= now;
    }
    return true;
}

bool crypt_seal_end(struct crypt *crypt, uint8_t tag[CRYPT_TAG_BYTES])
{
    int done;
    uint8_t none[16];
    return EVP_CipherFinal_ex(crypt->ctx, none, &done) == 1 &&
           EVP_CIPHER_CTX_ctrl(crypt->ctx, EVP_CTRL_AEAD_GET_TAG, CRYPT_TAG_BYTES, tag) == 1;
}

bool crypt_open_end(struct crypt *crypt, const uint8_t tag[CRYPT_TAG_BYTES])
{
    int done;
    uint8_t none[16];
    uint8_t expected[CRYPT_TAG_BYTES];
    memcpy(expected, tag, sizeof(expected));
    return EVP_CIPHER_CTX_ctrl(crypt->ctx, EVP_CTRL_AEAD_SET_TAG, CRYPT_TAG_BYTES, expected) == 1 &&
           EVP_CipherFinal_ex(crypt->ctx, none, &done) == 1;
}
