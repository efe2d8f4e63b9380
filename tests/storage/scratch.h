/* SPDX-License-Identifier: Apache-2.0 */
/* scratch.h - a directory for one test, on a real file system. */
#ifndef LARDER_TESTS_SCRATCH_H
#define LARDER_TESTS_SCRATCH_H

#define SCRATCH_PATH_BYTES 256

/* Under the build directory (LARDER_BUILD), or TMPDIR, or /tmp. Ends the program when it cannot. */
void scratch_make(char path[SCRATCH_PATH_BYTES]);
/* With everything in it. */
void scratch_remove(const char *path);

#endif
