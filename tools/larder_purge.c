/* SPDX-License-Identifier: Apache-2.0 */
/* larder_purge.c - `larder purge`. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "tools/larder_commands.h"
#include "tools/larder_link.h"
#include "tools/larder_text.h"

/* The tenant's name typed again, unless --yes was given. */
static int confirm(const struct command_options *options, const char *tenant)
{
    if (options->yes)
        return 0;
    if (!isatty(STDIN_FILENO))
        return larder_fail(LARDER_ECONFIG,
                           "a purge cannot be undone: confirm it with --yes where nobody can be "
                           "asked");
    char line[LARDER_TENANT_NAME_MAX + 2] = "";
    fprintf(stderr,
            "All that tenant %s has stored will be gone, for good. Its name, to confirm: ", tenant);
    if (!fgets(line, sizeof(line), stdin))
        line[0] = '\0';
    line[strcspn(line, "\n")] = '\0';
    return strcmp(line, tenant) == 0 ? 0 : larder_fail(LARDER_ECONFIG, "nothing was purged");
}

int command_purge(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    struct wire_admin_purge ask = {.confirm = WIRE_PURGE_CONFIRM};
    if (strlen(argv[0]) >= sizeof(ask.tenant))
        return command_failed(larder_fail(LARDER_ENOTFOUND, "there is no tenant '%s'", argv[0]));
    memcpy(ask.tenant, argv[0], strlen(argv[0]));
    int err = confirm(options, argv[0]);
    if (err < 0)
        return command_failed(err);
    struct link *link;
    err = link_open(&link, options->socket);
    if (err < 0)
        return command_failed(err);
    const void *body;
    err = link_request(link, &body, WIRE_ADMIN_PURGE, &ask, sizeof(ask), WIRE_ADMIN_PURGE_OK,
                       sizeof(struct wire_remove_ok));
    unsigned long long removed = err == 0 ? ((const struct wire_remove_ok *)body)->removed : 0;
    link_close(link);
    if (err < 0)
        return command_failed(err);
    if (options->json)
        printf("{\"removed\": %llu}\n", removed);
    else
        printf("purged tenant %s: %llu %s\n", argv[0], removed, removed == 1 ? "entry" : "entries");
    return COMMAND_OK;
}
