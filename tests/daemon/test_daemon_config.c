/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   larderd.conf(5): what is right is taken, what is wrong is named with file, line, value
 *         and remedy, and the tenant rules pick who larderd.conf(5) says.
 * Method: config_parse() on texts; larderd --check-config on files; SIGHUP on a running one.
 */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "daemon/config.h"
#include "tests/daemon/fixture.h"
#include "tests/daemon/peer.h"

static int parse(struct config *config, const char *text)
{
    config_init(config);
    int err = config_parse(config, "f.conf", text, strlen(text));
    return err < 0 ? err : config_finish(config, "f.conf");
}

START_TEST(values_are_taken)
{
    struct config config;
    ck_assert_int_eq(parse(&config, "# a comment\n"
                                    "directory=/a/b # another\n"
                                    "  host_bytes =  1G\n"
                                    "slab_bytes = 16M\r\n"
                                    "\n"
                                    "lease_ms = 5000\n"
                                    "log_level = debug\n"
                                    "core_dumps = on\n"
                                    "recipe = raw\n"
                                    "eviction = lru\n"
                                    "admission = off\n"
                                    "ssd_high = 80\n"
                                    "ssd_low = 79\n"
                                    "socket = /x/y#z.sock\n"
                                    "quota red = ssd 2G host 64M\n"
                                    "quota * = host 32M # others\n"
                                    "quota uid-1 =  ssd 1T\n"
                                    "tenant red = uid 7"),
                     0);
    ck_assert_uint_eq(config.quota_count, 3);
    ck_assert_uint_eq(config_find_quota(&config, "red")->ssd_bytes, 2ull << 30);
    ck_assert_uint_eq(config_find_quota(&config, "red")->host_bytes, 64u << 20);
    ck_assert_uint_eq(config_find_quota(&config, "blue")->host_bytes, 32u << 20);
    ck_assert_uint_eq(config_find_quota(&config, "blue")->ssd_bytes, 0);
    ck_assert_uint_eq(config_find_quota(&config, "uid-1")->ssd_bytes, 1ull << 40);
    ck_assert_str_eq(config.directory, "/a/b");
    ck_assert_uint_eq(config.host_bytes, 1u << 30);
    ck_assert_str_eq(config.eviction, "lru");
    ck_assert_uint_eq(config.admission, 0);
    ck_assert_uint_eq(config.ssd_high, 80);
    ck_assert_uint_eq(config.ssd_low, 79);
    ck_assert_uint_eq(config.slab_bytes, 16u << 20);
    ck_assert_uint_eq(config.lease_ms, 5000);
    ck_assert_int_eq(config.log_level, LARDER_LOG_DEBUG);
    ck_assert_uint_eq(config.core_dumps, 1);
    ck_assert_str_eq(config.socket, "/x/y#z.sock");
    ck_assert_str_eq(config.control_socket, "/x/control.sock");
    ck_assert_uint_ge(config.threads, 1);
    ck_assert_uint_eq(config.rule_count, 1);
    config_free(&config);
}
END_TEST

START_TEST(models_of_workers)
{
    struct config config, other;
    ck_assert_int_eq(parse(&config, "model a = /srv/a\nmodel b-8B = /srv/b b  kv=f16\n"), 0);
    ck_assert_uint_eq(config.model_count, 2);
    ck_assert_str_eq(config.models[0].name, "a");
    ck_assert_str_eq(config.models[0].directory, "/srv/a");
    ck_assert_uint_eq(config.models[0].kv_dtype, 0);
    ck_assert_str_eq(config.models[1].name, "b-8B");
    ck_assert_str_eq(config.models[1].directory, "/srv/b b");
    ck_assert_uint_eq(config.models[1].kv_dtype, LARDER_F16);
    ck_assert_str_eq(config.models[1].method, "cacheblend r=.15");
    ck_assert_int_eq(parse(&other, "model a = /srv/a\n"), 0);
    ck_assert(!config_same_models(&config, &other));
    ck_assert_int_eq(config_set_model(&other, "b-8B=/srv/b b kv=f16"), 0);
    ck_assert(config_same_models(&config, &other));
    ck_assert_int_eq(config_set_model(&other, "c=/c  kv=f32 method=link k=16"), 0);
    ck_assert_str_eq(other.models[2].directory, "/c");
    ck_assert_str_eq(other.models[2].method, "link k=16");
    ck_assert_uint_eq(other.models[2].kv_dtype, LARDER_F32);
    ck_assert_int_eq(config_set_model(&other, "a=/srv/c"), LARDER_ECONFIG);
    ck_assert_int_eq(config_set_model(&other, "=/srv/c"), LARDER_ECONFIG);
    ck_assert_int_eq(config_set_model(&other, "c"), LARDER_ECONFIG);
    for (int i = 0; i < 13; i++) {
        char text[32];
        snprintf(text, sizeof(text), "m%d=/m", i);
        ck_assert_int_eq(config_set_model(&other, text), 0);
    }
    ck_assert_int_eq(config_set_model(&other, "more=/m"), LARDER_ECONFIG);
    config_free(&config);
    config_free(&other);
}
END_TEST

START_TEST(mistakes_are_named)
{
    static const char *const cases[][2] = {
        {"host_bytes", "f.conf:1: 'host_bytes' has no '='"},
        {"\n\nfoo = 1", "f.conf:3: 'foo' is not a key"},
        {"host_bytes = many", "f.conf:1: host_bytes: "},
        {"host_bytes = 1K", "f.conf:1: host_bytes: 1K is outside 1048576.."},
        {"host_bytes =", "f.conf:1: host_bytes: "},
        {"threads = -1", "f.conf:1: threads: '-1' is not a whole number"},
        {"threads = 1e3", "f.conf:1: threads: '1e3' is not a whole number"},
        {"threads = 99999999999999999999", "f.conf:1: threads: "},
        {"block_tokens = 0", "f.conf:1: block_tokens: 0 is outside 1..4096"},
        {"directory = var/lib", "f.conf:1: directory: path 'var/lib' is relative"},
        {"key_file = key", "f.conf:1: key_file: path 'key' is relative"},
        {"directory =", "f.conf:1: directory: a value is missing"},
        {"core_dumps = yes", "f.conf:1: core_dumps: 'yes' is neither 'on' nor 'off'"},
        {"log_level = loud", "f.conf:1: log_level: "},
        {"io = fast", "f.conf: io=fast is not one of auto, uring, threads"},
        {"recipe = kivi99", "f.conf: recipe: "},
        {"eviction = arc", "f.conf: eviction=arc is not one of value, lru, fifo"},
        {"lease_ms = 200\nlease_ms = 300", "f.conf:2: lease_ms is set twice, first in line 1"},
        {"slab_bytes = 1048577", "f.conf: slab_bytes=1048577 and segment_bytes="},
        {"slab_bytes = 8G", "f.conf: slab_bytes=8589934592 is more than host_bytes="},
        {"segment_bytes = 32G\nssd_bytes = 1G", "f.conf: segment_bytes="},
        {"ssd_high = 101", "f.conf:1: ssd_high: 101 is outside 2..100"},
        {"ssd_low = 95", "f.conf: ssd_low=95 is not below ssd_high=95"},
        {"ssd_high = 50", "f.conf: ssd_low=90 is not below ssd_high=50"},
        {"staging_bytes_max = 64M\nstaging_bytes_all = 1M", "f.conf: staging_bytes_max="},
        {"control_socket = /run/larder/larder.sock", "f.conf: socket and control_socket are both"},
        {"tenant = uid 1", "f.conf:1: 'tenant' is not a key"},
        {"tenant a b = uid 1", "f.conf:1: ' ' in tenant 'a b' is not one of"},
        {"tenant uid-5 = uid 1", "f.conf:1: tenant 'uid-5': names that begin with uid-"},
        {"tenant a = 1", "f.conf:1: '1' is not 'uid N', 'gid N' or 'socket PATH'"},
        {"tenant a = uid x", "f.conf:1: 'x' is not a numeric id"},
        {"tenant a = uid 4294967295", "f.conf:1: '4294967295' is not a numeric id"},
        {"tenant a = socket b.sock", "f.conf:1: path 'b.sock' is relative"},
        {"tenant a = uid 1\ntenant b = uid 1", "f.conf:2: 'uid 1' is tenant 'a' already"},
        {"quota = ssd 1G", "f.conf:1: 'quota' is not a key"},
        {"quota a =", "f.conf:1: a value is missing"},
        {"quota a = 1G", "f.conf:1: '1G' is not 'ssd SIZE', 'host SIZE' or both"},
        {"quota a = ssd", "f.conf:1: 'ssd' is not 'ssd SIZE', 'host SIZE' or both"},
        {"quota a = ssd lots", "f.conf:1: "},
        {"quota a = ssd 0", "f.conf:1: ssd 0 is below 1M"},
        {"quota a = ssd 1G ssd 2G", "f.conf:1: 'ssd' stands there twice"},
        {"quota a/b = ssd 1G", "f.conf:1: '/' in tenant 'a/b' is not one of"},
        {"quota a = ssd 1G\nquota a = host 1G", "f.conf:2: tenant 'a' has a quota already"},
        {"recipe = auto", "f.conf: recipe: auto as a default says what it keeps"},
        {"recipe = auto max_kl=0", "f.conf: recipe: 'auto max_kl=0' is neither"},
        {"recipe = auto max_kl=nan", "f.conf: recipe: 'auto max_kl=nan' is neither"},
        {"recipe = auto max_kl=1 2", "f.conf: recipe: 'auto max_kl=1 2' is neither"},
        {"recipe a = kivi99", "f.conf:1: "},
        {"recipe a =", "f.conf:1: a recipe's text has 1 to 1024 bytes"},
        {"recipe a b c = raw", "f.conf:1: a recipe is for a tenant, or a tenant and a model"},
        {"recipe a/b = raw", "f.conf:1: '/' in tenant 'a/b' is not one of"},
        {"recipe a = raw\nrecipe a = exact",
         "f.conf:2: tenant a and model * have a recipe already"},
        {"model m = models/m", "f.conf:1: folder 'models/m' of a model is relative"},
        {"model m =", "f.conf:1: folder '' of a model is relative"},
        {"model m = /m kv=int8", "f.conf:1: 'kv=int8' is not one of kv=f32, kv=f16, kv=bf16"},
        {"model m = /m method=", "f.conf:1: a method's text has 1 to 127 bytes"},
        {"model a b = /m", "f.conf:1: model 'a b': a name has no spaces"},
        {"model m = /a\nmodel m = /b", "f.conf:2: model m is there already, from /a"},
        {"model = /m", "f.conf:1: 'model' is not a key"},
        {"worker_threads = 257", "f.conf:1: worker_threads: 257 is outside 0..256"},
        {"demote =", "f.conf:1: write AGE:RECIPE"},
        {"demote = ,", "f.conf:1: there is no step in it"},
        {"demote = kivi4", "f.conf:1: 'kivi4' is no AGE:RECIPE like 7d:kivi4"},
        {"demote = 7d:", "f.conf:1: a recipe's text has 1 to 1024 bytes"},
        {"demote = 7d:kivi99", "f.conf:1: recipe 'kivi99', character 1"},
        {"demote = 7d:auto max_kl=1", "f.conf:1: auto is no recipe to demote to"},
        {"demote = 7d:mikv-8-2", "f.conf:1: 'mikv-8-2' needs importance scores or q_max"},
        {"demote = 0:kivi4", "f.conf:1: '0' is no time like"},
        {"demote = 1d:kivi4, 24h:kivi2", "f.conf:1: age 24h is not above the one before it"},
        {"demote = 1d:kivi2, 2d:kivi4", "f.conf: demote: 'kivi4' takes 5.00 bits an element"},
        {"demote = 1d:kivi4, 2d:kivi4", "f.conf: demote: 'kivi4' takes 5.00 bits an element"},
        {"demote = 1s:raw,2s:raw,3s:raw,4s:raw,5s:raw,6s:raw,7s:raw,8s:raw,9s:raw",
         "f.conf:1: more than 8 steps"},
        {"demote a b c = off", "f.conf:1: a demote is for a tenant, or a tenant and a model"},
        {"demote = off\ndemote * = off", "f.conf:2: tenant * and model * have a demote line"},
        {"demote_rate_bytes = 1K", "f.conf:1: demote_rate_bytes: 1K is outside"},
        {"tenant a = socket /run/larder/larder.sock", "f.conf: the socket of tenant 'a'"},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        struct config config;
        ck_assert_msg(parse(&config, cases[i][0]) == LARDER_ECONFIG, "accepted: %s", cases[i][0]);
        ck_assert_msg(strncmp(larder_error_message(), cases[i][1], strlen(cases[i][1])) == 0,
                      "'%s' gives '%s', not '%s...'", cases[i][0], larder_error_message(),
                      cases[i][1]);
        config_free(&config);
    }
}
END_TEST

START_TEST(steps_of_ages)
{
    struct config config;
    struct config fresh;
    struct larder_model_desc model = {.name = "tiny"};
    const struct larder_key fingerprint = {{0xab, 0xcd, 0xef, 0x01, 0x23}};
    ck_assert_int_eq(parse(&config, "demote = 1h : exact , 7d:  quant   bits=4 ,30d:kivi2\n"
                                    "demote red = off\n"
                                    "demote red tiny = 90:larder, 15m:larder-small\n"),
                     0);
    const struct demote_rule *rule = config_find_demote(&config, "blue", &model, &fingerprint);
    ck_assert_uint_eq(rule->count, 3);
    ck_assert_uint_eq(rule->steps[0].age_s, 3600);
    ck_assert_str_eq(rule->steps[0].recipe, "exact");
    ck_assert_uint_eq(rule->steps[1].age_s, 7 * 86400);
    ck_assert_str_eq(rule->steps[1].recipe, "quant bits=4");
    ck_assert_str_eq(rule->steps[2].recipe, "kivi2");
    rule = config_find_demote(&config, "red", &model, &fingerprint);
    ck_assert_uint_eq(rule->count, 2);
    ck_assert_uint_eq(rule->steps[0].age_s, 90);
    strcpy(model.name, "large");
    ck_assert_ptr_null(config_find_demote(&config, "red", &model, &fingerprint));
    ck_assert_int_eq(parse(&fresh, "demote red = 1d:kivi8\n"), 0);
    config_reload(&config, &fresh);
    ck_assert_ptr_null(config_find_demote(&config, "blue", &model, &fingerprint));
    ck_assert_uint_eq(config_find_demote(&config, "red", &model, &fingerprint)->count, 1);
    config_free(&fresh);
    config_free(&config);
}
END_TEST

START_TEST(recipes_of_tenants_and_models)
{
    struct config config;
    struct larder_model_desc model = {.name = "tiny"};
    const struct larder_key fingerprint = {{0xab, 0xcd, 0xef, 0x01, 0x23}};
    ck_assert_int_eq(parse(&config, "recipe = exact\n"
                                    "recipe red tiny = kivi2\n"
                                    "recipe * tiny = kivi4\n"
                                    "recipe blue = auto max_kl=0.01\n"
                                    "recipe * abcdef01 = raw\n"
                                    "recipe green abcdef0123 = kivi8\n"),
                     0);
    static const struct {
        const char *tenant;
        const char *model;
        const char *text;
        enum larder_quality quality;
    } cases[] = {
        {"red", "tiny", "kivi2", LARDER_QUALITY_LOSSY},
        {"red", "large", "raw", LARDER_QUALITY_EXACT}, /* by its fingerprint */
        {"blue", "tiny", "auto max_kl=0.01", LARDER_QUALITY_EXACT},
        {"blue", "large", "auto max_kl=0.01", LARDER_QUALITY_EXACT},
        {"green", "large", "kivi8", LARDER_QUALITY_LOSSY},
        {"white", "large", "raw", LARDER_QUALITY_EXACT},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        strcpy(model.name, cases[i].model);
        const struct recipe_choice *found =
            config_find_recipe(&config, cases[i].tenant, &model, &fingerprint);
        ck_assert_str_eq(found->text, cases[i].text);
        ck_assert_int_eq(found->quality, cases[i].quality);
        ck_assert((found->max_kl > 0) == (strncmp(found->text, "auto", 4) == 0));
    }
    const struct larder_key other = {{1}};
    strcpy(model.name, "large");
    ck_assert_str_eq(config_find_recipe(&config, "white", &model, &other)->text, "exact");
    config_free(&config);
}
END_TEST

START_TEST(texts_that_are_none)
{
    struct config config;
    char *text = malloc(10000);
    memset(text, 'x', 10000);
    config_init(&config);
    ck_assert_int_eq(config_parse(&config, "f", text, 10000), LARDER_ECONFIG);
    text[10] = 0;
    ck_assert_int_eq(config_parse(&config, "f", text, 100), LARDER_ECONFIG);
    srand(3);
    for (int round = 0; round < 20000; round++) {
        static const char letters[] = "tenant quota * ssd uid gid socket=/#\n 0123 host_bytes";
        size_t bytes = (size_t)rand() % 200;
        for (size_t i = 0; i < bytes; i++)
            text[i] = letters[(size_t)rand() % sizeof(letters)];
        config_parse(&config, "f", text, bytes);
        config_free(&config);
    }
    free(text);
    ck_assert_int_eq(config_read_file(&config, "/nonexistent/f.conf"), -ENOENT);
}
END_TEST

START_TEST(rules_pick_tenants)
{
    struct config config;
    const uint32_t groups[] = {100, 44};
    ck_assert_int_eq(parse(&config, "tenant video = gid 44\ntenant web = uid 33\n"
                                    "tenant box = socket /box.sock\n"),
                     0);
    ck_assert_ptr_null(config_find_rule(&config, "/s", 1, groups, 1));
    ck_assert_str_eq(config_find_rule(&config, "/s", 1, groups, 2)->name, "video");
    ck_assert_str_eq(config_find_rule(&config, "/s", 33, groups, 2)->name, "web");
    ck_assert_str_eq(config_find_rule(&config, "/box.sock", 33, groups, 2)->name, "box");
    config_free(&config);
}
END_TEST

/* The sample in the sources: every key there is, each with the value it has without the line. */
START_TEST(sample_is_the_default)
{
    struct config sample;
    struct config plain;
    char text[16384];
    size_t used = 0;
    char line[256];
    FILE *file = fopen("daemon/larderd.conf", "re");
    ck_assert_msg(file != NULL, "daemon/larderd.conf: run this from the sources' folder");
    while (fgets(line, sizeof(line), file)) {
        bool is_comment = line[0] != '#' || line[1] == ' ' || line[1] == '\n';
        int wrote = snprintf(text + used, sizeof(text) - used, "%s", is_comment ? "\n" : line + 1);
        used += (size_t)wrote;
        ck_assert_uint_lt(used, sizeof(text));
    }
    fclose(file);
    ck_assert_msg(parse(&sample, text) == 0, "%s", larder_error_message());
    ck_assert_int_eq(parse(&plain, ""), 0);
    ck_assert_uint_eq(sample.rule_count, 4);
    ck_assert_uint_eq(sample.model_count, 1);
    uint32_t key_count = 0;
    for (size_t i = 0; i < LARDER_COUNT_OF(sample.lines); i++)
        key_count += sample.lines[i] > 0;
    ck_assert_uint_eq(key_count, 28); /* as many as larderd.conf(5) has, but for key_file */
    memset(sample.lines, 0, sizeof(sample.lines));
    config_free(&sample);
    ck_assert_mem_eq(&sample, &plain, sizeof(plain));
}
END_TEST

START_TEST(check_config)
{
    struct fixture fixture;
    fixture_prepare(&fixture, NULL);
    const char *const good[] = {"--check-config", "--config", fixture.config_path, NULL};
    ck_assert_int_eq(fixture_run(&fixture, good), 0);
    const char *const missing[] = {"--check-config", "--config", "/nonexistent", NULL};
    ck_assert_int_eq(fixture_run(&fixture, missing), 2);
    ck_assert(fixture_log_has(&fixture, "cannot open /nonexistent"));
    const char *const relative[] = {"--check-config", "--config", fixture.config_path,
                                    "--dir",          "x",        NULL};
    ck_assert_int_eq(fixture_run(&fixture, relative), 2);
    const char *const unknown[] = {"--frobnicate", NULL};
    ck_assert_int_eq(fixture_run(&fixture, unknown), 2);
    const char *const extra[] = {"start", NULL};
    ck_assert_int_eq(fixture_run(&fixture, extra), 2);
    fixture_stop(&fixture);

    fixture_prepare(&fixture, "lease_ms = soon\n");
    const char *const bad[] = {"--config", fixture.config_path, NULL};
    ck_assert_int_eq(fixture_run(&fixture, bad), 2);
    ck_assert(fixture_log_has(&fixture, "lease_ms: 'soon' is not a whole number"));
    ck_assert_int_ne(access(fixture.socket, F_OK), 0);
    fixture_stop(&fixture);
}
END_TEST

static void wait_log(const struct fixture *fixture, const char *text)
{
    const struct timespec moment = {.tv_nsec = 20000000};
    for (int i = 0; i < 250 && !fixture_log_has(fixture, text); i++)
        nanosleep(&moment, NULL);
    ck_assert_msg(fixture_log_has(fixture, text), "the log never says '%s'", text);
}

START_TEST(reload)
{
    struct fixture fixture;
    struct peer peer;
    fixture_start(&fixture, "lease_ms = 1000\n");
    FILE *file = fopen(fixture.config_path, "ae");
    fprintf(file, "send_ms = 4321\nio_depth = 7\ntenant renamed = uid %u\n", getuid());
    fclose(file);
    kill(fixture.pid, SIGHUP);
    wait_log(&fixture, "reload: done");
    ck_assert(fixture_log_has(&fixture, "send_ms has its new value"));
    ck_assert(fixture_log_has(&fixture, "io_depth has changed; restart"));
    ck_assert(!fixture_log_has(&fixture, "lease_ms has"));
    peer_open(&peer, fixture.socket);
    ck_assert_str_eq(peer.hello.tenant_name, "renamed");
    peer_close(&peer);

    /* A socket more is for the next start; until then rules stay as they are, all of them. */
    file = fopen(fixture.config_path, "ae");
    fprintf(file, "tenant boxed = socket %s/boxed.sock\n", fixture.directory);
    fclose(file);
    kill(fixture.pid, SIGHUP);
    wait_log(&fixture, "sockets of tenants have changed; restart larderd");
    peer_open(&peer, fixture.socket);
    ck_assert_str_eq(peer.hello.tenant_name, "renamed");
    peer_close(&peer);
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    fixture_restart(&fixture);
    char boxed[160];
    snprintf(boxed, sizeof(boxed), "%s/boxed.sock", fixture.directory);
    peer_open(&peer, boxed);
    ck_assert_str_eq(peer.hello.tenant_name, "boxed");
    peer_close(&peer);

    /* A bad file changes nothing. */
    file = fopen(fixture.config_path, "ae");
    fprintf(file, "nonsense\n");
    fclose(file);
    kill(fixture.pid, SIGHUP);
    wait_log(&fixture, "reload: nothing was changed");
    peer_check_served(fixture.socket, 5);
    fixture_stop(&fixture);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_config");
    TCase *tests = tcase_create("config");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, values_are_taken);
    tcase_add_test(tests, models_of_workers);
    tcase_add_test(tests, mistakes_are_named);
    tcase_add_test(tests, recipes_of_tenants_and_models);
    tcase_add_test(tests, steps_of_ages);
    tcase_add_test(tests, texts_that_are_none);
    tcase_add_test(tests, rules_pick_tenants);
    tcase_add_test(tests, sample_is_the_default);
    tcase_add_test(tests, check_config);
    tcase_add_test(tests, reload);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
