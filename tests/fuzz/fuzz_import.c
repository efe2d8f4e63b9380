/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   a file that larder import takes for a chain lies within its bytes, part for part; sealing
 *         what was parsed gives a file whose checks match.
 * Input:  a file of larder export. */
#include "base/error.h"
#include "base/key.h"
#include "base/limits.h"
#include "tests/fuzz/fuzz.h"
#include "tools/chain_file.h"

static void check_chain(uint8_t *file, const struct chain_layout *layout, size_t bytes)
{
    const struct chain_head *head = (const struct chain_head *)(void *)file;
    assert(layout->bytes == bytes);
    assert(layout->extra + head->extra_bytes <= layout->tokens);
    assert(layout->tokens + 4ull * head->token_count <= layout->checks);
    assert(layout->checks + 16 * layout->piece_count <= layout->data);
    assert(layout->token_bytes == larder_model_kv_bytes(&head->model, 1));
    assert(layout->data + layout->token_bytes * head->token_count == bytes);
    assert(larder_model_check(&head->model) == 0);
    fuzz_touch(file + layout->extra, head->extra_bytes);
    const uint32_t *tokens = (const uint32_t *)(const void *)(file + layout->tokens);
    for (uint32_t i = 0; i < head->token_count; i++)
        assert(tokens[i] < head->model.vocab);
    /* Whatever they say, they read no more than the file. */
    for (uint64_t i = 0; i < layout->piece_count; i++) {
        int err = chain_file_verify_piece(file, layout, i);
        assert(err == 0 || err == LARDER_ECORRUPT);
        chain_file_seal_piece(file, layout, i);
        assert(chain_file_verify_piece(file, layout, i) == 0);
    }
    int err = chain_file_verify_head(file, layout);
    assert(err == 0 || err == LARDER_ECORRUPT);
    chain_file_seal_head(file, layout);
    assert(chain_file_verify_head(file, layout) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    uint8_t *file = fuzz_copy(data, bytes);
    struct chain_layout layout;
    int err = chain_file_parse(&layout, file, bytes);
    if (err == 0)
        check_chain(file, &layout, bytes);
    else
        assert(larder_error_message()[0] && layout.bytes == 0);
    free(file);
    return 0;
}
