/* SPDX-License-Identifier: Apache-2.0 */
/* make_golden.c - makes the golden stores of the release that it is built with:
 *   clean   after a clean stop: raw and exact entries, chains with tails, tails that were extended,
 *           removals, two tenants, two models, several segments
 *   put     the same a life later: killed between a PUT's sync and the index's commit, so that the
 *           newest segment ends with records that the index does not know of
 *   remove  a life later again: the same with a removal, of what was put before
 *   encrypted  (v1-1) with a key file, which is written to OUT/test.key: raw, exact and lossy
 *           variants, a pin, a removal, two tenants, after a clean stop
 * Writes OUT/NAME.tar.gz, and beside each a list of what is in it. By hand, once a format (needs
 * strace): build/tests/make_golden tests/golden/v1-N [encrypted]. What is committed is not made
 * again. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "tests/golden/chains.h"

/* Tokens of a chain that are there in the end; 0: removed. */
struct fate {
    struct chain chain;
    uint32_t tokens;
};

static const char *out;
static const struct fate *pinned;
static struct fixture fixture;

static void must(int err, const char *what)
{
    if (err == 0)
        return;
    fprintf(stderr, "make_golden: %s: %d\n", what, err);
    exit(1);
}

static void __attribute__((format(printf, 1, 2))) shell(const char *format, ...)
{
    char command[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    must(system(command), command);
}

/* The store of a daemon that does not run, and what can be read from it. */
static void save(const char *name, const struct fate *fates, size_t count)
{
    char path[512], digest[CHAIN_DIGEST_TEXT];
    shell("cd %s/store && tar -S --sort=name --owner=0 --group=0 --numeric-owner -c . | "
          "gzip -9n >%s/%s.tar.gz",
          fixture.directory, out, name);
    snprintf(path, sizeof(path), "%s/%s.txt", out, name);
    FILE *list = fopen(path, "we");
    must(list ? 0 : -1, path);
    fprintf(list, "# tenant model chain tokens asked, tokens there, SHA-256 of their KV\n");
    fixture_restart(&fixture);
    for (size_t i = 0; i < count; i++) {
        const struct chain *chain = &fates[i].chain;
        uint32_t tokens = fates[i].tokens ? fates[i].tokens : CHAIN_TOKENS_MAX;
        int64_t got = chain_get(&fixture, chain, tokens, digest);
        if (got != fates[i].tokens) {
            fprintf(stderr, "make_golden: %s: chain %u: %lld of %u tokens\n", name, chain->number,
                    (long long)got, fates[i].tokens);
            exit(1);
        }
        fprintf(list, "%u %u %u %u %u %s%s\n", chain->tenant, chain->model, chain->number, tokens,
                fates[i].tokens, fates[i].tokens ? digest : "-",
                &fates[i] == pinned ? " pinned" : "");
    }
    fclose(list);
}

static void put_all(const struct fate *fates, size_t first, size_t count)
{
    for (size_t i = first; i < first + count; i++)
        must(chain_put(&fixture, &fates[i].chain, fates[i].tokens), "put");
}

/* From now on the daemon dies when the index is written. */
static void kill_at_commit(void)
{
    shell("strace -f -q -o %s/trace -P %s/store/index/data.mdb -e trace=pwrite64,writev "
          "-e inject=pwrite64,writev:signal=KILL -p %d & sleep 1",
          fixture.directory, fixture.directory, (int)fixture.pid);
}

static void make_encrypted(void)
{
    struct fate fates[] = {
        {{0, 0, 102}, 40}, {{0, 1, 103}, 64}, {{1, 0, 104}, 33},
        {{1, 1, 105}, 17}, {{0, 0, 106}, 48},
    };
    fixture_prepare(&fixture, CHAINS_CONFIG_ENCRYPTED);
    shell("head -c 32 /dev/urandom >%s/test.key && chmod 600 %s/test.key && cp %s/test.key %s",
          fixture.directory, fixture.directory, fixture.directory, out);
    fixture_restart(&fixture);
    put_all(fates, 0, LARDER_COUNT_OF(fates));
    must(chain_put_lossy(&fixture, &fates[0].chain, 32), "a lossy variant");
    must(chain_pin(&fixture, &fates[1].chain, 64), "pin");
    must(chain_remove(&fixture, &fates[4].chain, 32), "remove");
    fates[4].tokens = 16;
    pinned = &fates[1];
    must(fixture_terminate(&fixture), "stop");
    save("encrypted", fates, LARDER_COUNT_OF(fates));
    fixture_stop(&fixture);
}

int main(int argc, char **argv)
{
    struct fate fates[] = {
        {{0, 0, 2}, 40},  {{0, 0, 3}, 40},  {{0, 1, 4}, 64}, {{0, 1, 5}, 33},  {{1, 0, 2}, 40},
        {{1, 0, 7}, 17},  {{1, 1, 9}, 48},  {{0, 0, 6}, 56}, {{0, 0, 11}, 5},  {{1, 1, 13}, 64},
        {{0, 1, 15}, 64}, {{1, 0, 21}, 30}, {{0, 0, 8}, 16}, {{0, 0, 12}, 48},
    };
    if (argc < 2) {
        fprintf(stderr, "usage: %s FOLDER [encrypted]\n", argv[0]);
        return 2;
    }
    out = argv[1];
    if (argc > 2) {
        make_encrypted();
        return 0;
    }
    fixture_start(&fixture, CHAINS_CONFIG);
    put_all(fates, 0, 8);
    /* Tails that get longer: the shorter ones are dead records. */
    fates[0].tokens = 62;
    fates[4].tokens = 48;
    must(chain_put(&fixture, &fates[0].chain, 62), "put");
    must(chain_put(&fixture, &fates[4].chain, 48), "put");
    must(fixture_terminate(&fixture), "stop");
    fixture_restart(&fixture);
    put_all(fates, 8, 2);
    /* One from its second block on, one whole. */
    must(chain_remove(&fixture, &fates[2].chain, 32), "remove");
    must(chain_remove(&fixture, &fates[5].chain, 16), "remove");
    fates[2].tokens = 16;
    fates[5].tokens = 0;
    must(fixture_terminate(&fixture), "stop");
    save("clean", fates, 10);

    put_all(fates, 10, 2);
    kill_at_commit();
    must(chain_put(&fixture, &fates[12].chain, 16) < 0 ? 0 : -1, "the daemon lives on");
    fixture_kill(&fixture);
    save("put", fates, 13);

    put_all(fates, 13, 1);
    kill_at_commit();
    must(chain_remove(&fixture, &fates[13].chain, 32) < 0 ? 0 : -1, "the daemon lives on");
    fates[13].tokens = 16;
    fixture_kill(&fixture);
    save("remove", fates, LARDER_COUNT_OF(fates));
    fixture_stop(&fixture);
    return 0;
}
