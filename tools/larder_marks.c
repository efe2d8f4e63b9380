/* SPDX-License-Identifier: Apache-2.0 */
/* larder_marks.c - `larder pin`, `unpin`, `ttl`, `priority`. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "tools/larder_commands.h"
#include "tools/larder_link.h"
#include "tools/larder_text.h"

/* The same change to every entry named; says how many. */
static int mark_all(const struct command_options *options, const struct larder_mark *mark,
                    const char *what, int argc, char **argv)
{
    struct link *link;
    int err = link_open(&link, options->socket);
    if (err < 0)
        return command_failed(err);
    int count = 0;
    for (; err == 0 && count < argc; count++) {
        struct wire_admin_entry entry;
        const void *body;
        struct wire_mark ask = {.mark = *mark};
        err = link_find(link, &entry, argv[count]);
        if (err < 0)
            break;
        memcpy(ask.key, entry.key, sizeof(ask.key));
        err = link_request(link, &body, WIRE_ADMIN_MARK, &ask, sizeof(ask), WIRE_ADMIN_MARK_OK, 0);
        if (err < 0)
            break;
    }
    link_close(link);
    if (options->json)
        printf("{\"changed\": %d}\n", count);
    else if (err == 0 || count > 0)
        printf("%s %d %s\n", what, count, count == 1 ? "entry" : "entries");
    return err < 0 ? command_failed(err) : COMMAND_OK;
}

int command_pin(const struct command_options *options, int argc, char **argv)
{
    const struct larder_mark mark = {.fields = LARDER_MARK_PIN, .pin_s = options->seconds};
    return mark_all(options, &mark, "pinned", argc, argv);
}

int command_unpin(const struct command_options *options, int argc, char **argv)
{
    const struct larder_mark mark = {.fields = LARDER_MARK_UNPIN};
    return mark_all(options, &mark, "unpinned", argc, argv);
}

int command_ttl(const struct command_options *options, int argc, char **argv)
{
    struct larder_mark mark = {.fields = LARDER_MARK_TTL};
    if (strcmp(argv[0], "never") != 0 && larder_parse_seconds(&mark.ttl_s, argv[0]) < 0)
        return command_failed(-EINVAL);
    return mark_all(options, &mark, "changed the time of", argc - 1, argv + 1);
}

int command_priority(const struct command_options *options, int argc, char **argv)
{
    if (!options->level_set) {
        larder_fail(-EINVAL, "--level is missing: a number from %d to %d", -LARDER_PRIORITY_MAX,
                    LARDER_PRIORITY_MAX);
        return command_failed(-EINVAL);
    }
    const struct larder_mark mark = {
        .fields = LARDER_MARK_PRIORITY, .priority = options->level, .priority_s = options->seconds};
    return mark_all(options, &mark, "changed the priority of", argc, argv);
}
