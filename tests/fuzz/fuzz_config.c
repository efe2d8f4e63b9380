/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   any text is a configuration within the limits or LARDER_ECONFIG with file and line; what
 *         was accepted can be finished, reloaded and asked.
 * Input:  the text of a larderd.conf. */
#include "daemon/config.h"

#include "base/error.h"
#include "codec/codec.h"
#include "tests/fuzz/fuzz.h"

static void check_text(const char *field, size_t bytes)
{
    assert(memchr(field, 0, bytes));
}

static void check_values(const struct config *config)
{
    check_text(config->directory, sizeof(config->directory));
    check_text(config->socket, sizeof(config->socket));
    check_text(config->control_socket, sizeof(config->control_socket));
    check_text(config->io, sizeof(config->io));
    check_text(config->recipe.text, sizeof(config->recipe.text));
    assert(config->directory[0] == '/' && config->socket[0] == '/');
    assert(config->block_tokens >= 1 && config->block_tokens <= LARDER_BLOCK_TOKENS_MAX);
    assert(config->threads <= 256 && config->io_depth >= 1 && config->io_depth <= 1024);
    assert(config->lease_ms >= 100 && config->hello_ms >= 100 && config->send_ms >= 100);
    assert(config->core_dumps <= 1 && config->log_level <= LARDER_LOG_DEBUG);
    assert(config->rule_count <= LARDER_TENANTS_MAX);
    for (uint32_t i = 0; i < config->rule_count; i++) {
        const struct tenant_rule *rule = &config->rules[i];
        check_text(rule->name, sizeof(rule->name));
        check_text(rule->path, sizeof(rule->path));
        assert(rule->name[0] && strncmp(rule->name, "uid-", 4) != 0);
        assert(rule->kind != RULE_SOCKET || rule->path[0] == '/');
        const uint32_t gids[] = {rule->id};
        assert(config_find_rule(config, rule->path, rule->id, gids, 1));
    }
}

static void check_finished(struct config *config)
{
    check_values(config);
    assert(config->control_socket[0] == '/' && config->threads >= 1);
    assert(strcmp(config->socket, config->control_socket) != 0);
    assert(config->slab_bytes <= config->host_bytes);
    assert(config->segment_bytes <= config->ssd_bytes);
    assert(config->staging_bytes_max <= config->staging_bytes_all);
    assert(config_check_recipe(&config->recipe) == 0);
    for (uint32_t i = 0; i < config->recipe_count; i++) {
        const struct recipe_rule *rule = &config->recipes[i];
        check_text(rule->whom.tenant, sizeof(rule->whom.tenant));
        check_text(rule->whom.model, sizeof(rule->whom.model));
        assert(config_check_recipe(&config->recipes[i].choice) == 0);
        assert(rule->whom.tenant[0] && rule->whom.model[0]);
    }
    for (uint32_t i = 0; i < config->demote_count; i++) {
        const struct demote_rule *rule = &config->demotes[i];
        check_text(rule->whom.tenant, sizeof(rule->whom.tenant));
        assert(rule->count <= DEMOTE_STEPS_MAX);
        for (uint32_t at = 0; at < rule->count; at++) {
            check_text(rule->steps[at].recipe, sizeof(rule->steps[at].recipe));
            assert(rule->steps[at].age_s > (at > 0 ? rule->steps[at - 1].age_s : 0));
        }
    }

    struct config running;
    config_init(&running);
    assert(config_finish(&running, "default") == 0);
    config_reload(&running, config);
    check_values(&running);
    config_free(&running);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    larder_log_set_level(LARDER_LOG_ERROR); /* a reload tells every change */
    struct config config;
    config_init(&config);
    char *text = fuzz_copy(data, bytes);
    int err = config_parse(&config, "fuzz.conf", text, bytes);
    free(text);
    assert(err == 0 || err == LARDER_ECONFIG);
    if (err < 0)
        assert(strncmp(larder_error_message(), "fuzz.conf:", 10) == 0);
    check_values(&config);
    if (err == 0) {
        err = config_finish(&config, "fuzz.conf");
        assert(err == 0 || err == LARDER_ECONFIG);
        if (err == 0)
            check_finished(&config);
    }
    config_free(&config);
    return 0;
}
