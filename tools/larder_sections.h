/* SPDX-License-Identifier: Apache-2.0 */
/* larder_sections.h - what encoding made of one stored record, and what it cost, as larder(1) shows
 * it: bits an element and relative error, layer by layer.
 */
#ifndef LARDER_TOOLS_LARDER_SECTIONS_H
#define LARDER_TOOLS_LARDER_SECTIONS_H

#include <jansson.h>

#include "tools/larder_link.h"

struct record_sections {
    struct wire_admin_sections_ok head;
    struct wire_admin_section sections[LARDER_SECTIONS_MAX];
};

/* Of that variant of the key. LARDER_EPROTO for an answer that cannot be. */
int sections_ask(struct link *link, struct record_sections *out, const uint8_t key[32],
                 uint32_t variant);

/* One line, then one for each layer. */
void sections_text(const struct record_sections *record, const struct larder_model_desc *model);
/* "bits_per_element", "k_error", "v_error", "fell_back", "profile" and "layers"; what nobody
 * measured is null. */
void sections_json(json_t *out, const struct record_sections *record,
                   const struct larder_model_desc *model);

#endif
