/* SPDX-License-Identifier: Apache-2.0 */
#include "base/event.h"

const char *larder_event_label(unsigned event)
{
    switch (event) {
#define LARDER_EVENT_LABEL(name, number, label, text)                                              \
    case LARDER_EVENT_##name:                                                                      \
        return label;
        LARDER_EVENTS(LARDER_EVENT_LABEL)
#undef LARDER_EVENT_LABEL
    default:
        return "";
    }
}

const char *larder_event_text(unsigned event)
{
    switch (event) {
#define LARDER_EVENT_TEXT(name, number, label, text)                                               \
    case LARDER_EVENT_##name:                                                                      \
        return text;
        LARDER_EVENTS(LARDER_EVENT_TEXT)
#undef LARDER_EVENT_TEXT
    default:
        return "";
    }
}
