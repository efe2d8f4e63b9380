/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/larder_sections.h"

#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/record.h"

int sections_ask(struct link *link, struct record_sections *out, const uint8_t key[32],
                 uint32_t variant)
{
    struct wire_admin_variant ask = {.variant = variant};
    const void *body;
    memcpy(ask.key, key, sizeof(ask.key));
    LARDER_TRY(link_request(link, &body, WIRE_ADMIN_SECTIONS, &ask, sizeof(ask),
                            WIRE_ADMIN_SECTIONS_OK, sizeof(out->head)));
    memcpy(&out->head, body, sizeof(out->head));
    const uint32_t count = out->head.section_count;
    const struct wire_frame *frame = (const void *)link->answer;
    if (count > LARDER_SECTIONS_MAX || out->head.token_count == 0 ||
        frame->bytes != sizeof(*frame) + sizeof(out->head) + count * sizeof(out->sections[0]))
        return larder_fail(LARDER_EPROTO, "larderd's answer about %u sections is malformed", count);
    memcpy(out->sections, (const uint8_t *)body + sizeof(out->head),
           count * sizeof(out->sections[0]));
    out->head.recipe[sizeof(out->head.recipe) - 1] = '\0';
    return 0;
}

static double elements(const struct record_sections *record, const struct larder_model_desc *model,
                       const struct wire_admin_section *section)
{
    const uint32_t dims = section->kind == LARDER_SECTION_K ? model->k_dims : model->v_dims;
    return (double)section->layer_count * section->head_count * record->head.token_count * dims;
}

/* Of K and V together: the record as it is stored, and its sections alone. */
static void bits_per_element(const struct record_sections *record,
                             const struct larder_model_desc *model, double *whole, double *sections)
{
    double all = 0;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < record->head.section_count; i++) {
        all += elements(record, model, &record->sections[i]);
        bytes += record->sections[i].bytes;
    }
    *whole = all > 0 ? 8 * (double)record->head.record_bytes / all : 0;
    *sections = all > 0 ? 8 * (double)bytes / all : 0;
}

static uint32_t count_fell_back(const struct record_sections *record)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < record->head.section_count; i++)
        count += (record->sections[i].flags & LARDER_SECTION_FELL_BACK) != 0;
    return count;
}

/* --- for people ------------------------------------------------------------------------------- */

static void print_section(const struct record_sections *record,
                          const struct larder_model_desc *model,
                          const struct wire_admin_section *section)
{
    const char *note = section->flags & LARDER_SECTION_FELL_BACK ? "*" : " ";
    const double all = elements(record, model, section);
    printf("  %7.3f", all > 0 ? 8 * (double)section->bytes / all : 0);
    if (section->error < 0)
        printf(" %10s%s", "unknown", note);
    else if (section->error == 0)
        printf(" %10s%s", "exact", note);
    else
        printf(" %10.3g%s", (double)section->error, note);
}

void sections_text(const struct record_sections *record, const struct larder_model_desc *model)
{
    const struct wire_admin_sections_ok *head = &record->head;
    double whole, sections;
    char profile[65];
    bits_per_element(record, model, &whole, &sections);
    if (strlen(head->recipe) > 32)
        printf("stages       %s\n", head->recipe);
    larder_hex(profile, head->profile, sizeof(head->profile));
    if (!larder_all_zero(head->profile, sizeof(head->profile)))
        printf("profile      %s\n", profile);
    printf("bits         %.3f an element, %.3f without head and padding\n", whole, sections);
    printf("error        K %.3g, V %.3g (relative RMS over all layers)\n", (double)head->k_error,
           (double)head->v_error);
    printf("layers       %7s %10s   %7s %10s\n", "K bits", "error", "V bits", "error");
    for (uint32_t i = 0; i + 1 < head->section_count; i += 2) {
        const struct wire_admin_section *k = &record->sections[i];
        printf("%11u ", k->layer_first);
        print_section(record, model, k);
        print_section(record, model, k + 1);
        putchar('\n');
    }
    const uint32_t fell_back = count_fell_back(record);
    if (fell_back > 0)
        printf("             * stored exact: the recipe could not hold it\n");
}

/* --- for programs ----------------------------------------------------------------------------- */

static json_t *section_json(const struct record_sections *record,
                            const struct larder_model_desc *model,
                            const struct wire_admin_section *section)
{
    const double all = elements(record, model, section);
    json_t *error = section->error < 0 ? json_null() : json_real((double)section->error);
    return json_pack("{s:I, s:f, s:o, s:b}", "bytes", (json_int_t)section->bytes,
                     "bits_per_element", all > 0 ? 8 * (double)section->bytes / all : 0.0, "error",
                     error, "fell_back", (section->flags & LARDER_SECTION_FELL_BACK) != 0);
}

void sections_json(json_t *out, const struct record_sections *record,
                   const struct larder_model_desc *model)
{
    const struct wire_admin_sections_ok *head = &record->head;
    double whole, sections;
    char profile[65];
    bits_per_element(record, model, &whole, &sections);
    larder_hex(profile, head->profile, sizeof(head->profile));
    json_t *layers = json_array();
    for (uint32_t i = 0; i + 1 < head->section_count; i += 2) {
        const struct wire_admin_section *k = &record->sections[i];
        json_array_append_new(layers, json_pack("{s:i, s:o, s:o}", "layer", (int)k->layer_first,
                                                "k", section_json(record, model, k), "v",
                                                section_json(record, model, k + 1)));
    }
    json_object_set_new(out, "stages", json_string(head->recipe));
    json_object_set_new(
        out, "profile",
        larder_all_zero(head->profile, sizeof(head->profile)) ? json_null() : json_string(profile));
    json_object_set_new(out, "bits_per_element", json_real(whole));
    json_object_set_new(out, "bits_per_element_sections", json_real(sections));
    json_object_set_new(out, "k_error", json_real((double)head->k_error));
    json_object_set_new(out, "v_error", json_real((double)head->v_error));
    json_object_set_new(out, "fell_back", json_integer(count_fell_back(record)));
    json_object_set_new(out, "layers", layers);
}
