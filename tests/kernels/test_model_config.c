/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: config.json is read as transformers reads it, and what the forward cannot do is refused.
 * Method: one good configuration, into which each case merges a few members.
 */
#include <check.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/error.h"
#include "kernels/model_config.h"
#include "tests/kernels/temp_model.h"

static const char base[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"vocab_size\":272,\"hidden_size\":256,"
    "\"intermediate_size\":704,\"num_hidden_layers\":6,\"num_attention_heads\":4,"
    "\"num_key_value_heads\":2,\"max_position_embeddings\":4096,\"rms_norm_eps\":1e-05,"
    "\"rope_theta\":10000.0,\"bos_token_id\":256,\"eos_token_id\":[1,2],\"hidden_act\":\"silu\"}";

/* The configuration with the members of `change`; null ones stay null. */
static int load_changed(struct larder_model_config *config, const char *change)
{
    json_t *root = json_loads(base, 0, NULL);
    json_error_t error;
    json_t *members = json_loads(change, 0, &error);
    ck_assert_msg(members, "%s: %s", change, error.text);
    json_object_update(root, members);
    char *text = json_dumps(root, 0);
    struct temp_model model;
    temp_model_open(&model);
    temp_model_write(&model, "config.json", text, strlen(text));
    int err = larder_model_config_load(config, model.directory);
    temp_model_close(&model);
    free(text);
    json_decref(members);
    json_decref(root);
    return err;
}

static struct larder_model_config load_good(const char *change)
{
    struct larder_model_config config;
    int err = load_changed(&config, change);
    ck_assert_msg(err == 0, "%s: %s", change, larder_error_message());
    return config;
}

START_TEST(test_llama)
{
    struct larder_model_config c = load_good("{}");
    ck_assert_str_eq(c.architecture, "LlamaForCausalLM");
    ck_assert_uint_eq(c.layers, 6);
    ck_assert_uint_eq(c.hidden, 256);
    ck_assert_uint_eq(c.feedforward, 704);
    ck_assert_uint_eq(c.heads, 4);
    ck_assert_uint_eq(c.kv_heads, 2);
    ck_assert_uint_eq(c.head_dims, 64);
    ck_assert_uint_eq(c.vocab, 272);
    ck_assert_uint_eq(c.positions_max, 4096);
    ck_assert_int_eq(c.bos, 256);
    ck_assert_uint_eq(c.eos_count, 2);
    ck_assert_uint_eq(c.eos[1], 2);
    ck_assert(c.norm_eps == 1e-5f);
    ck_assert(!c.tied);
    ck_assert(!c.qkv_bias);
    ck_assert(!c.out_bias);
    ck_assert(!c.qk_norm);
    ck_assert_uint_eq(c.rope.kind, LARDER_ROPE_PLAIN);
    ck_assert_uint_eq(c.rope.rotary_dims, 64);
    c = load_good("{\"attention_bias\":true,\"mlp_bias\":true,\"tie_word_embeddings\":true,"
                  "\"bos_token_id\":null,\"eos_token_id\":7,\"num_key_value_heads\":null,"
                  "\"head_dim\":32}");
    ck_assert(c.qkv_bias);
    ck_assert(c.out_bias);
    ck_assert(c.mlp_bias);
    ck_assert(c.tied);
    ck_assert_int_eq(c.bos, -1);
    ck_assert_uint_eq(c.eos[0], 7);
    ck_assert_uint_eq(c.kv_heads, 4);
    ck_assert_uint_eq(c.head_dims, 32);
}
END_TEST

START_TEST(test_families)
{
    struct larder_model_config c =
        load_good("{\"architectures\":[\"Qwen2ForCausalLM\"],"
                  "\"sliding_window\":128,\"use_sliding_window\":false}");
    ck_assert(c.qkv_bias);
    ck_assert(!c.out_bias);
    c = load_good("{\"architectures\":[\"Qwen3ForCausalLM\"]}");
    ck_assert(c.qk_norm);
    ck_assert_uint_eq(c.head_dims, 128);
    c = load_good("{\"architectures\":[\"MistralForCausalLM\"],\"sliding_window\":null,"
                  "\"attention_bias\":true}");
    ck_assert(!c.qkv_bias);
    /* Windows that hide nothing. */
    load_good("{\"architectures\":[\"MistralForCausalLM\"],\"sliding_window\":4096}");
    load_good("{\"architectures\":[\"Qwen2ForCausalLM\"],\"sliding_window\":128,"
              "\"use_sliding_window\":true,\"max_window_layers\":6,"
              "\"layer_types\":[\"full_attention\",\"full_attention\"]}");
}
END_TEST

START_TEST(test_rope)
{
    struct larder_rope rope =
        load_good("{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}").rope;
    ck_assert_uint_eq(rope.kind, LARDER_ROPE_LINEAR);
    ck_assert(rope.factor == 2);
    rope = load_good("{\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\","
                     "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                     "\"original_max_position_embeddings\":8192}}")
               .rope;
    ck_assert_uint_eq(rope.kind, LARDER_ROPE_LLAMA3);
    ck_assert(rope.theta == 500000);
    ck_assert_uint_eq(rope.original_max_position, 8192);
    ck_assert(rope.high_freq_factor == 4);
    rope = load_good("{\"rope_theta\":null,\"rope_parameters\":{\"rope_type\":\"yarn\","
                     "\"rope_theta\":1000000,\"factor\":4,"
                     "\"original_max_position_embeddings\":1024}}")
               .rope;
    ck_assert_uint_eq(rope.kind, LARDER_ROPE_YARN);
    ck_assert(rope.theta == 1000000);
    ck_assert(rope.beta_fast == 32);
    ck_assert_double_eq_tol(rope.attention_factor, 1.1386294361, 1e-9);
    rope = load_good("{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":null,\"mscale\":0.5,"
                     "\"mscale_all_dim\":1.0,\"original_max_position_embeddings\":1024}}")
               .rope;
    ck_assert(rope.factor == 4);
    ck_assert_double_eq_tol(rope.attention_factor, (0.05 * log(4) + 1) / (0.1 * log(4) + 1), 1e-9);
    rope = load_good("{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,"
                     "\"attention_factor\":1.5}}")
               .rope;
    ck_assert(rope.attention_factor == 1.5);
    ck_assert_uint_eq(rope.original_max_position, 4096);
    ck_assert_uint_eq(load_good("{\"rope_scaling\":{\"rope_type\":\"default\"}}").rope.kind,
                      LARDER_ROPE_PLAIN);
}
END_TEST

static const struct {
    const char *change;
    int code;
    const char *message; /* a part of it */
} refused[] = {
    {"{\"architectures\":null}", LARDER_EFORMAT, "architectures"},
    {"{\"architectures\":[\"MixtralForCausalLM\"]}", LARDER_EUNSUPPORTED, "MixtralForCausalLM"},
    {"{\"hidden_size\":null}", LARDER_EFORMAT, "hidden_size is missing"},
    {"{\"hidden_size\":0}", LARDER_EFORMAT, "hidden_size=0"},
    {"{\"hidden_size\":-256}", LARDER_EFORMAT, "hidden_size=-256"},
    {"{\"hidden_size\":256.0}", LARDER_EFORMAT, "not an integer"},
    {"{\"hidden_size\":\"256\"}", LARDER_EFORMAT, "not an integer"},
    {"{\"hidden_size\":4294967552}", LARDER_EFORMAT, "within"},
    {"{\"num_hidden_layers\":100000}", LARDER_EFORMAT, "within"},
    {"{\"intermediate_size\":100000000}", LARDER_EFORMAT, "within"},
    {"{\"vocab_size\":1000000000}", LARDER_EFORMAT, "within"},
    {"{\"head_dim\":4096}", LARDER_EFORMAT, "within"},
    {"{\"hidden_size\":65536,\"num_attention_heads\":2}", LARDER_EFORMAT, "dimensions"},
    {"{\"head_dim\":63}", LARDER_EMODEL, "rotary_dims"},
    {"{\"num_attention_heads\":300,\"num_key_value_heads\":300}", LARDER_EFORMAT, "dimensions"},
    {"{\"num_key_value_heads\":3}", LARDER_EFORMAT, "evenly"},
    {"{\"num_attention_heads\":512,\"num_key_value_heads\":1,\"head_dim\":64}", LARDER_EFORMAT,
     "evenly"},
    {"{\"max_position_embeddings\":1000000000}", LARDER_EFORMAT, "within"},
    {"{\"rms_norm_eps\":-1}", LARDER_EFORMAT, "rms_norm_eps"},
    {"{\"rms_norm_eps\":\"small\"}", LARDER_EFORMAT, "rms_norm_eps"},
    {"{\"tie_word_embeddings\":1}", LARDER_EFORMAT, "neither true nor false"},
    {"{\"hidden_act\":\"gelu\"}", LARDER_EUNSUPPORTED, "gelu"},
    {"{\"quantization_config\":{\"bits\":4}}", LARDER_EUNSUPPORTED, "quantized"},
    {"{\"architectures\":[\"MistralForCausalLM\"],\"max_position_embeddings\":8192}",
     LARDER_EUNSUPPORTED, "sliding window of 4096"},
    {"{\"architectures\":[\"MistralForCausalLM\"],\"sliding_window\":1024}", LARDER_EUNSUPPORTED,
     "sliding window of 1024"},
    {"{\"architectures\":[\"Qwen2ForCausalLM\"],\"sliding_window\":1024,"
     "\"use_sliding_window\":true}",
     LARDER_EUNSUPPORTED, "sliding window"},
    {"{\"layer_types\":[\"full_attention\",\"sliding_attention\"]}", LARDER_EUNSUPPORTED,
     "layer 1"},
    {"{\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":2}}", LARDER_EUNSUPPORTED, "dynamic"},
    {"{\"rope_scaling\":{\"type\":\"longrope\"}}", LARDER_EUNSUPPORTED, "longrope"},
    {"{\"rope_scaling\":7}", LARDER_EFORMAT, "not an object"},
    {"{\"rope_scaling\":{\"type\":\"linear\"}}", LARDER_EMODEL, "factor"},
    {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}}", LARDER_EMODEL, "factor"},
    {"{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"truncate\":false}}", LARDER_EUNSUPPORTED,
     "truncate"},
    {"{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"original_max_position_embeddings\":0}}",
     LARDER_EFORMAT, "original_max"},
    {"{\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2}}", LARDER_EMODEL, "low_freq_factor"},
    {"{\"rope_parameters\":{\"full_attention\":{},\"sliding_attention\":{}}}", LARDER_EUNSUPPORTED,
     "differs by layer"},
    {"{\"rope_theta\":1}", LARDER_EMODEL, "theta"},
    {"{\"rope_theta\":\"big\"}", LARDER_EFORMAT, "rope_theta"},
    {"{\"partial_rotary_factor\":0.5}", LARDER_EUNSUPPORTED, "partial_rotary_factor"},
    {"{\"bos_token_id\":272}", LARDER_EFORMAT, "bos_token_id"},
    {"{\"bos_token_id\":-1}", LARDER_EFORMAT, "bos_token_id"},
    {"{\"eos_token_id\":[1,272]}", LARDER_EFORMAT, "eos_token_id"},
    {"{\"eos_token_id\":[1,1,1,1,1,1,1,1,1]}", LARDER_EFORMAT, "eos_token_id"},
};

START_TEST(test_refused)
{
    struct larder_model_config config;
    int err = load_changed(&config, refused[_i].change);
    ck_assert_msg(err == refused[_i].code, "%s: %s, %s", refused[_i].change, larder_error_name(err),
                  larder_error_message());
    ck_assert_msg(strstr(larder_error_message(), refused[_i].message), "'%s' lacks '%s'",
                  larder_error_message(), refused[_i].message);
}
END_TEST

START_TEST(test_no_json)
{
    static const char *const texts[] = {"",
                                        "{",
                                        "[]",
                                        "{\"a\":1,\"a\":2}",
                                        "{} {}",
                                        "{\"rope_theta\":NaN}",
                                        "{\"rope_theta\":1e999}"};
    struct temp_model model;
    temp_model_open(&model);
    struct larder_model_config config;
    ck_assert_int_eq(larder_model_config_load(&config, model.directory), -ENOENT);
    for (size_t i = 0; i < LARDER_COUNT_OF(texts); i++) {
        temp_model_write(&model, "config.json", texts[i], strlen(texts[i]));
        ck_assert_int_eq(larder_model_config_load(&config, model.directory), LARDER_EFORMAT);
    }
    temp_model_close(&model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model_config");
    TCase *all = tcase_create("model_config");
    tcase_add_test(all, test_llama);
    tcase_add_test(all, test_families);
    tcase_add_test(all, test_rope);
    tcase_add_loop_test(all, test_refused, 0, (int)LARDER_COUNT_OF(refused));
    tcase_add_test(all, test_no_json);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
