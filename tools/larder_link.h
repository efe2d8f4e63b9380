/* SPDX-License-Identifier: Apache-2.0 */
/* larder_link.h - larder(1)'s connection to a daemon's control socket: one request at a time.
 * Errors: 0 or negative with a message, as everywhere; LARDER_EDOWN when nobody answers.
 */
#ifndef LARDER_TOOLS_LARDER_LINK_H
#define LARDER_TOOLS_LARDER_LINK_H

#include <stddef.h>
#include <stdint.h>

#include "base/wire.h"

#define LINK_SOCKET_DEFAULT "/run/larder/control.sock"

struct link {
    int fd;
    uint64_t request;
    _Alignas(8) uint8_t answer[LARDER_FRAME_BYTES_MAX];
};

/* The path itself; NULL: $LARDER_CONTROL_SOCKET, else the default. */
const char *link_socket(const char *path);
/* `path` NULL: $LARDER_CONTROL_SOCKET, else the default. */
int link_open(struct link **out, const char *path);
void link_close(struct link *link);

/* Sends a request and waits for its answer, whose body (valid until the next request) is at least
 * `answer_bytes_min` long. The daemon's own error comes back as its code and message. */
int link_request(struct link *link, const void **out, enum wire_type type, const void *body,
                 size_t body_bytes, enum wire_type answer_type, size_t answer_bytes_min);

/* The same of an answer that comes with a descriptor, which is the caller's to close. */
int link_request_fd(struct link *link, const void **out, int *fd, enum wire_type type,
                    const void *body, size_t body_bytes, enum wire_type answer_type,
                    size_t answer_bytes_min);

int link_status(struct link *link, struct wire_admin_status_ok *out);
/* All tenants, in an array for larder_free(); NULL when there are none. */
int link_tenants(struct link *link, struct wire_admin_tenant_ok **out, size_t *count);

/* LARDER_ENOTFOUND past the last one. */
int link_model(struct link *link, struct wire_admin_model_ok *out, uint32_t index);
int link_scrub(struct link *link, struct wire_admin_scrub_ok *out, enum wire_scrub_action action,
               uint64_t rate_bytes);
int link_gc(struct link *link, struct wire_admin_gc_ok *out, const struct wire_admin_gc *ask);
int link_demote(struct link *link, struct wire_admin_demote_ok *out, enum wire_scrub_action action,
                uint64_t rate_bytes);
int link_counters(struct link *link, struct wire_admin_counters_ok *out);

/* Entries in pages, for as long as `visit` returns 0. Only keys that begin with `digits` hex digits
 * of `prefix`. */
int link_each_entry(struct link *link, const uint8_t prefix[32], uint32_t digits,
                    int (*visit)(void *context, const struct wire_admin_entry *entry),
                    void *context);

/* The one entry whose key begins with `text` (hex). LARDER_ENOTFOUND; -EINVAL when there are
 * several, with candidates in the message, or when it is no hex. */
int link_find(struct link *link, struct wire_admin_entry *out, const char *text);

#endif
