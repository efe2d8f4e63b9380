/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: the ciphers are the ones that docs/FORMAT.md names, and key files are read with care.
 * Method: vectors of other programs and of the GCM specification; files of every wrong kind. */
#include "storage/crypt.h"

#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/larder_base.h"
#include "base/log.h"
#include "scratch.h"

/* RFC 5869's first case has a key of 22 bytes, its third one no salt: neither is of our form. This
 * is HKDF-SHA256 by Python's hmac, written out, over bytes 0..31, salt 32..63, our info. */
START_TEST(derives_as_hkdf)
{
    static const char expected[] =
        "2264ab0b3d228a5148f41c7a0eddcd37e776ed158d343505b59d1e63e1e916be";
    uint8_t bytes[64], out[32];
    char hex[65];
    for (uint8_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = i;
    ck_assert_int_eq(crypt_derive(out, bytes, bytes + 32, 32, "larder record 1"), 0);
    larder_hex(hex, out, sizeof(out));
    ck_assert_str_eq(hex, expected);
    ck_assert_int_eq(crypt_derive(out, bytes, bytes + 32, 32, "larder tenants 2"), 0);
    larder_hex(hex, out, sizeof(out));
    ck_assert_str_ne(hex, expected);
}
END_TEST

/* Test case 16 of the GCM specification: AES-256, 60 bytes, 20 bytes authenticated only. */
static const char gcm_key[] = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";
static const char gcm_nonce[] = "cafebabefacedbaddecaf888";
static const char gcm_plain[] = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
                                "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39";
static const char gcm_added[] = "feedfacedeadbeeffeedfacedeadbeefabaddad2";
static const char gcm_sealed[] = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
                                 "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662";
static const char gcm_tag[] = "76fc6ece0f4e1768cddf8853bb2d551b";

START_TEST(seals_as_gcm)
{
    uint8_t key[32], nonce[12], plain[60], added[20], expected[60], tag[16], out[60], got[16];
    larder_unhex(key, sizeof(key), gcm_key);
    larder_unhex(nonce, sizeof(nonce), gcm_nonce);
    larder_unhex(plain, sizeof(plain), gcm_plain);
    larder_unhex(added, sizeof(added), gcm_added);
    larder_unhex(expected, sizeof(expected), gcm_sealed);
    larder_unhex(tag, sizeof(tag), gcm_tag);
    struct crypt *crypt;
    ck_assert_int_eq(crypt_open(&crypt), 0);
    ck_assert(crypt_set_key(crypt, key));
    /* In parts of every size, to another place and in place, again and again with one context. */
    for (size_t part = 1; part <= sizeof(plain); part++) {
        memcpy(out, plain, sizeof(out));
        ck_assert(crypt_seal_begin(crypt, nonce));
        ck_assert(crypt_add(crypt, added, 7));
        ck_assert(crypt_add(crypt, added + 7, 13));
        for (size_t at = 0; at < sizeof(plain); at += part) {
            size_t bytes = larder_min_u64(part, sizeof(plain) - at);
            const uint8_t *from = part % 2 ? out + at : plain + at;
            ck_assert(crypt_update(crypt, out + at, from, bytes));
        }
        ck_assert(crypt_seal_end(crypt, got));
        ck_assert_mem_eq(out, expected, sizeof(out));
        ck_assert_mem_eq(got, tag, sizeof(got));

        ck_assert(crypt_open_begin(crypt, nonce));
        ck_assert(crypt_add(crypt, added, sizeof(added)));
        ck_assert(crypt_update(crypt, out, out, sizeof(out)));
        got[part % 16] ^= (uint8_t)(part % 3 == 0);
        ck_assert(crypt_open_end(crypt, got) == (part % 3 != 0));
        ck_assert_mem_eq(out, plain, sizeof(out));
    }
    crypt_close(crypt);
}
END_TEST

static int read_key(uint8_t out[32], const char *directory, const void *bytes, size_t count,
                    mode_t mode)
{
    char path[SCRATCH_PATH_BYTES + 8];
    snprintf(path, sizeof(path), "%s/key", directory);
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    ck_assert_int_eq(write(fd, bytes, count), (ssize_t)count);
    ck_assert_int_eq(fchmod(fd, mode), 0);
    close(fd);
    return crypt_read_key_file(out, path);
}

START_TEST(key_files)
{
    char directory[SCRATCH_PATH_BYTES];
    scratch_make(directory);
    uint8_t key[32], out[32];
    char hex[72];
    for (uint8_t i = 0; i < sizeof(key); i++)
        key[i] = (uint8_t)(i * 7 + 1);
    larder_hex(hex, key, sizeof(key));

    ck_assert_int_eq(read_key(out, directory, key, 32, 0600), 0);
    ck_assert_mem_eq(out, key, 32);
    memset(out, 0, sizeof(out));
    ck_assert_int_eq(read_key(out, directory, hex, 64, 0400), 0);
    ck_assert_mem_eq(out, key, 32);
    strcat(hex, "\n");
    memset(out, 0, sizeof(out));
    ck_assert_int_eq(read_key(out, directory, hex, 65, 0600), 0);
    ck_assert_mem_eq(out, key, 32);

    static const mode_t open_to_others[] = {0640, 0604, 0660, 0610};
    for (size_t i = 0; i < LARDER_COUNT_OF(open_to_others); i++) {
        ck_assert_int_eq(read_key(out, directory, key, 32, open_to_others[i]), LARDER_ECONFIG);
        ck_assert_ptr_nonnull(strstr(larder_error_message(), "chmod 600"));
    }
    for (size_t bytes = 0; bytes <= 65; bytes++) {
        if (bytes != 32 && bytes != 64 && bytes != 65)
            ck_assert_int_eq(read_key(out, directory, hex, bytes, 0600), LARDER_ECONFIG);
    }
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "64 hexadecimal digits"));
    hex[10] = 'g';
    ck_assert_int_eq(read_key(out, directory, hex, 64, 0600), LARDER_ECONFIG);
    strcat(hex, "\n");
    ck_assert_int_eq(read_key(out, directory, hex, 66, 0600), LARDER_ECONFIG);
    ck_assert_int_eq(crypt_read_key_file(out, directory), LARDER_ECONFIG);
    ck_assert_int_eq(crypt_read_key_file(out, "/nowhere/key"), LARDER_ECONFIG);
    scratch_remove(directory);
}
END_TEST

START_TEST(secrets_are_zeros)
{
    uint8_t *secret = crypt_secret_alloc(100);
    ck_assert_ptr_nonnull(secret);
    ck_assert(larder_all_zero(secret, 100));
    memset(secret, 1, 100);
    crypt_secret_free(secret, 100);
    crypt_secret_free(NULL, 100);
}
END_TEST

int main(void)
{
    larder_log_set_level(LARDER_LOG_ERROR);
    Suite *suite = suite_create("crypt");
    TCase *all = tcase_create("all");
    tcase_add_test(all, derives_as_hkdf);
    tcase_add_test(all, seals_as_gcm);
    tcase_add_test(all, key_files);
    tcase_add_test(all, secrets_are_zeros);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
