/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/blend/splice.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"

static int check_edits(uint64_t *total, uint32_t count, const struct larder_blend_edit *edits,
                       uint32_t edit_count)
{
    uint64_t at = 0;
    *total = count;
    for (uint32_t i = 0; i < edit_count; i++) {
        const struct larder_blend_edit *edit = &edits[i];
        if (edit->first < at)
            return larder_fail(-EINVAL,
                               "edit %u begins at token %u, before %llu where the last ends", i,
                               edit->first, (unsigned long long)at);
        if (edit->first > count || edit->removed > count - edit->first)
            return larder_fail(-EINVAL, "edit %u takes %u tokens from %u on; the prompt has %u", i,
                               edit->removed, edit->first, count);
        at = (uint64_t)edit->first + edit->removed;
        *total += (uint64_t)edit->added - edit->removed;
    }
    if (*total == 0)
        return larder_fail(-EINVAL, "edits that leave no token of the prompt");
    if (*total > LARDER_PROMPT_TOKENS_MAX)
        return larder_fail(LARDER_ELIMIT, "edits make a prompt of %llu tokens, above %u",
                           (unsigned long long)*total, LARDER_PROMPT_TOKENS_MAX);
    return 0;
}

/* The prompt as it grows. */
struct splice {
    uint32_t *tokens;
    struct larder_blend_span *spans;
    uint32_t token_count;
    uint32_t span_count;
};

static void append(struct splice *splice, enum larder_blend_source source, const uint32_t *tokens,
                   uint32_t count, uint32_t stored_first, uint32_t piece)
{
    if (count == 0)
        return;
    memcpy(splice->tokens + splice->token_count, tokens, count * sizeof(*tokens));
    splice->spans[splice->span_count++] = (struct larder_blend_span){.first = splice->token_count,
                                                                     .count = count,
                                                                     .stored_first = stored_first,
                                                                     .source = source,
                                                                     .piece = piece};
    splice->token_count += count;
}

int larder_blend_splice(struct larder_blend_prompt *out, const uint32_t *tokens, uint32_t count,
                        const struct larder_blend_edit *edits, uint32_t edit_count)
{
    *out = (struct larder_blend_prompt){0};
    uint64_t total;
    LARDER_TRY(check_edits(&total, count, edits, edit_count));
    struct splice splice = {
        .tokens = larder_alloc(total * sizeof(*splice.tokens)),
        .spans = larder_alloc((2 * (uint64_t)edit_count + 1) * sizeof(*splice.spans)),
    };
    if (!splice.tokens || !splice.spans) {
        larder_free(splice.spans);
        larder_free(splice.tokens);
        return larder_fail(-ENOMEM, "no memory for a prompt of %llu tokens",
                           (unsigned long long)total);
    }
    uint32_t at = 0; /* of the old prompt */
    for (uint32_t i = 0; i <= edit_count; i++) {
        uint32_t end = i < edit_count ? edits[i].first : count;
        /* Behind an edit that changed nothing tokens are a prefix, still. */
        bool is_prefix = splice.span_count == 0 ||
                         splice.spans[splice.span_count - 1].source == LARDER_BLEND_PREFIX;
        is_prefix = is_prefix && at == splice.token_count;
        append(&splice, is_prefix ? LARDER_BLEND_PREFIX : LARDER_BLEND_MOVED, tokens + at, end - at,
               at, 0);
        if (i == edit_count)
            break;
        append(&splice, LARDER_BLEND_MISSING, edits[i].tokens, edits[i].added, 0, i + 1);
        at = end + edits[i].removed;
    }
    *out = (struct larder_blend_prompt){
        .tokens = splice.tokens,
        .spans = splice.spans,
        .token_count = splice.token_count,
        .span_count = splice.span_count,
    };
    return 0;
}

void larder_blend_splice_free(struct larder_blend_prompt *prompt)
{
    larder_free((void *)(uintptr_t)prompt->spans);
    larder_free((void *)(uintptr_t)prompt->tokens);
    *prompt = (struct larder_blend_prompt){0};
}
