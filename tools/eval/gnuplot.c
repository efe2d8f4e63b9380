/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/gnuplot.h"

#include <errno.h>
#include <string.h>
#include <sys/wait.h>

#include "base/error.h"

int eval_gnuplot_open(FILE **out, const char *path)
{
    *out = NULL;
    if (strpbrk(path, "'\n"))
        return larder_fail(-EINVAL, "'%s': gnuplot takes no path with a quote", path);
    *out = popen("gnuplot", "w");
    return *out ? 0 : larder_fail(-errno, "gnuplot: %s", strerror(errno));
}

int eval_gnuplot_close(FILE *file, const char *path)
{
    int status = pclose(file);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "a picture needs gnuplot; tools/setup test installs it");
    return status == 0 ? 0 : larder_fail(-EIO, "gnuplot could not write %s", path);
}
