/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/index_check.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/error.h"
#include "base/larder_base.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/index.h"
#include "storage/planted.h"

const struct index_database_kind index_databases[INDEX_DATABASES] = {
    [INDEX_ENTRIES] = {"entries", sizeof(struct larder_key) + 4, sizeof(struct index_entry)},
    [INDEX_SEGMENTS] = {"segments", 4, sizeof(struct index_segment)},
    [INDEX_MODELS] = {"models", sizeof(struct larder_key), sizeof(struct larder_model_desc) + 8},
    [INDEX_META] = {"meta", 0, 16},
    [INDEX_MARKS] = {"marks", sizeof(struct larder_key), sizeof(struct index_mark)},
};

#define KEY_BYTES_MAX   64u
#define VALUE_BYTES_MAX 256u

uint64_t index_value_check(const void *key, size_t key_bytes, const void *value, size_t value_bytes)
{
    uint8_t both[KEY_BYTES_MAX + VALUE_BYTES_MAX];
    assert(key_bytes <= KEY_BYTES_MAX);
    assert(value_bytes <= VALUE_BYTES_MAX && value_bytes >= 8);
    memcpy(both, key, key_bytes);
    memcpy(both + key_bytes, value, value_bytes - 8);
    return XXH3_64bits(both, key_bytes + value_bytes - 8);
}

/* --- LMDB's file, data version 1 (LMDB 0.9), on a 64-bit little-endian machine ------------------
 * A page starts with page_head. Meta pages 0 and 1 hold a meta each; the one with the higher
 * transaction number holds. Branch and leaf pages hold an array of 16-bit offsets behind the head,
 * in key order, to nodes that fill the page's end without gaps. */

struct page_head {
    uint64_t number;
    uint16_t pad;
    uint16_t flags;
    uint16_t lower; /* end of the offsets; an overflow run has its 32-bit length here instead */
    uint16_t upper; /* start of the nodes */
};
static_assert(sizeof(struct page_head) == 16, "LMDB's layout");

#define PAGE_BRANCH   0x01u
#define PAGE_LEAF     0x02u
#define PAGE_OVERFLOW 0x04u
#define PAGE_META     0x08u

struct node_head {
    uint16_t low;   /* leaf: low 16 bits of the value's length; branch: of the child */
    uint16_t high;  /* the next 16 bits */
    uint16_t flags; /* branch: the 16 bits after that */
    uint16_t key_bytes;
};
static_assert(sizeof(struct node_head) == 8, "LMDB's layout");

#define NODE_OVERFLOW 0x01u /* the value is the number of an overflow page */
#define NODE_TREE     0x02u /* the value is a struct tree */

struct tree {
    uint32_t pad; /* of the free pages' tree: page size */
    uint16_t flags;
    uint16_t depth;
    uint64_t branch_pages;
    uint64_t leaf_pages;
    uint64_t overflow_pages;
    uint64_t entries;
    uint64_t root;
};
static_assert(sizeof(struct tree) == 48, "LMDB's layout");

#define NO_PAGE           UINT64_MAX
#define TREE_INTEGER_KEYS 0x08u
#define DEPTH_MAX         32u

struct meta {
    uint32_t magic;
    uint32_t version;
    uint64_t address;
    uint64_t map_bytes;
    struct tree free;
    struct tree main;
    uint64_t last_page;
    uint64_t transaction;
};
static_assert(sizeof(struct meta) == 136, "LMDB's layout");

#define META_MAGIC   0xBEEFC0DEu
#define META_VERSION 1u

/* --- the walk --------------------------------------------------------------------------------- */

struct span {
    const uint8_t *bytes;
    size_t count;
};

enum tree_kind {
    TREE_FREE,
    TREE_MAIN,
    TREE_VALUES,
};

struct walk {
    const uint8_t *map;
    uint32_t page_bytes;
    uint64_t file_pages;
    uint64_t last_page;
    uint64_t transaction;
    uint8_t *seen; /* a bit a page: in a tree, or named as free */
    char *reason;
    size_t reason_bytes;
    /* the tree under way */
    enum tree_kind kind;
    enum index_database database; /* TREE_VALUES */
    struct tree found;            /* counted */
    struct span previous;         /* key; NULL before the first */
    /* what the main tree names */
    bool named[INDEX_DATABASES];
    struct tree trees[INDEX_DATABASES];
};

static bool bad(struct walk *walk, const char *format, ...) __attribute__((format(printf, 2, 3)));

static bool bad(struct walk *walk, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(walk->reason, walk->reason_bytes, format, args);
    va_end(args);
    return false;
}

static uint16_t load_u16(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

static uint64_t load_u64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

static int compare(const struct walk *walk, struct span a, struct span b)
{
    if (walk->kind == TREE_FREE) {
        uint64_t left = load_u64(a.bytes), right = load_u64(b.bytes);
        return left < right ? -1 : left > right;
    }
    int order = memcmp(a.bytes, b.bytes, a.count < b.count ? a.count : b.count);
    return order ? order : a.count < b.count ? -1 : a.count > b.count;
}

static bool mark(struct walk *walk, uint64_t page)
{
    if (page < 2 || page > walk->last_page)
        return bad(walk, "page %llu is named, the last one is %llu", (unsigned long long)page,
                   (unsigned long long)walk->last_page);
    uint8_t bit = (uint8_t)(1u << (page % 8));
    if (walk->seen[page / 8] & bit)
        return bad(walk, "page %llu is used twice", (unsigned long long)page);
    walk->seen[page / 8] |= bit;
    return true;
}

/* Marks a page and gives its bytes. */
static const uint8_t *take_page(struct walk *walk, uint64_t number, struct page_head *head)
{
    if (!mark(walk, number))
        return NULL;
    if (number >= walk->file_pages) {
        bad(walk, "page %llu is beyond the end of the file", (unsigned long long)number);
        return NULL;
    }
    const uint8_t *page = walk->map + number * walk->page_bytes;
    memcpy(head, page, sizeof(*head));
    if (head->number != number) {
        bad(walk, "page %llu calls itself %llu", (unsigned long long)number,
            (unsigned long long)head->number);
        return NULL;
    }
    return page;
}

static struct node_head node_at(const uint8_t *page, uint32_t offset)
{
    struct node_head node;
    memcpy(&node, page + offset, sizeof(node));
    return node;
}

static uint32_t value_bytes_of(struct node_head node)
{
    return (uint32_t)node.low | (uint32_t)node.high << 16;
}

/* Room a node takes in its page; 64 bits, as the length may be any. */
static uint64_t node_room(struct node_head node, bool is_leaf)
{
    uint64_t bytes = sizeof(node) + node.key_bytes;
    if (is_leaf)
        bytes += node.flags & NODE_OVERFLOW ? sizeof(uint64_t) : value_bytes_of(node);
    return (bytes + 1) & ~1ull;
}

/* The nodes lie end to end from `upper` to the page's end, each named by one offset. Their order in
 * the page is free, so the offsets are marked first and then met one by one. */
static bool check_nodes(struct walk *walk, const uint8_t *page, const struct page_head *head,
                        uint32_t count, bool is_leaf)
{
    uint8_t starts[65536 / 2 / 8];
    memset(starts, 0, walk->page_bytes / 2 / 8);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t offset = load_u16(page + sizeof(*head) + 2 * i);
        if (offset % 2 || offset < head->upper ||
            offset + sizeof(struct node_head) > walk->page_bytes)
            return bad(walk, "page %llu: node %u is outside", (unsigned long long)head->number, i);
        starts[offset / 2 / 8] |= (uint8_t)(1u << (offset / 2 % 8));
    }
    uint32_t met = 0;
    uint64_t at = head->upper;
    while (at + sizeof(struct node_head) <= walk->page_bytes) {
        if (!(starts[at / 2 / 8] & (1u << (at / 2 % 8))))
            break;
        at += node_room(node_at(page, (uint32_t)at), is_leaf);
        met++;
    }
    if (at != walk->page_bytes || met != count)
        return bad(walk, "page %llu: its nodes do not fill it", (unsigned long long)head->number);
    return true;
}

/* Page numbers that may be used again: their count, then they, descending. */
static bool check_free_list(struct walk *walk, const uint8_t *list, uint64_t bytes)
{
    uint64_t count = bytes >= 8 ? load_u64(list) : UINT64_MAX;
    if (bytes % 8 || count > bytes / 8 - 1)
        return bad(walk, "a list of free pages has the wrong length");
    uint64_t above = UINT64_MAX;
    for (uint64_t i = 1; i <= count; i++) {
        uint64_t page = load_u64(list + 8 * i);
        if (page >= above)
            return bad(walk, "a list of free pages is out of order");
        if (!mark(walk, page))
            return false;
        above = page;
    }
    return true;
}

/* A value that has pages of its own; only lists of free pages grow so long. */
static const uint8_t *take_overflow(struct walk *walk, const uint8_t *at, uint32_t bytes)
{
    uint64_t number = load_u64(at);
    struct page_head head;
    const uint8_t *page = take_page(walk, number, &head);
    if (!page)
        return NULL;
    uint64_t pages = (sizeof(head) - 1 + (uint64_t)bytes) / walk->page_bytes + 1;
    uint64_t said = (uint64_t)head.lower | (uint64_t)head.upper << 16;
    if (head.flags != PAGE_OVERFLOW || said != pages || pages > walk->file_pages - number) {
        bad(walk, "overflow page %llu is malformed", (unsigned long long)number);
        return NULL;
    }
    for (uint64_t i = 1; i < pages; i++)
        if (!mark(walk, number + i))
            return NULL;
    walk->found.overflow_pages += pages;
    return page + sizeof(head);
}

static bool check_free_node(struct walk *walk, struct node_head node, struct span key,
                            const uint8_t *value)
{
    uint32_t bytes = value_bytes_of(node);
    /* Of the transaction that freed them. LMDB takes 0 for "none yet": it would use the list and
     * leave it there, and use it again. */
    uint64_t freed_by = load_u64(key.bytes);
    if (node.flags & ~NODE_OVERFLOW || freed_by == 0 || freed_by > walk->transaction)
        return bad(walk, "a list of free pages is malformed");
    if (node.flags & NODE_OVERFLOW) {
        value = take_overflow(walk, value, bytes);
        if (!value)
            return false;
    }
    return check_free_list(walk, value, bytes);
}

static bool check_main_node(struct walk *walk, struct node_head node, struct span key,
                            const uint8_t *value)
{
    for (int i = 0; i < INDEX_DATABASES; i++) {
        const char *name = index_databases[i].name;
        if (key.count != strlen(name) || memcmp(key.bytes, name, key.count) != 0)
            continue;
        if (node.flags != NODE_TREE || value_bytes_of(node) != sizeof(struct tree))
            break;
        walk->named[i] = true;
        memcpy(&walk->trees[i], value, sizeof(struct tree));
        return true;
    }
    return bad(walk, "the main tree has a malformed entry");
}

static bool check_value_node(struct walk *walk, struct node_head node, struct span key,
                             const uint8_t *value)
{
    const struct index_database_kind *kind = &index_databases[walk->database];
    if (node.flags != 0 || value_bytes_of(node) != kind->value_bytes || key.count > KEY_BYTES_MAX ||
        (kind->key_bytes && key.count != kind->key_bytes))
        return bad(walk, "%s: an entry has the wrong length", kind->name);
    uint64_t check = load_u64(value + kind->value_bytes - 8);
    if (check != index_value_check(key.bytes, key.count, value, kind->value_bytes) &&
        !LARDER_PLANT(CHECK_IGNORED))
        return bad(walk, "%s: the check of a value does not match", kind->name);
    return true;
}

static bool check_key(struct walk *walk, struct span key, struct span low, struct span high)
{
    if (key.count == 0 || (walk->kind == TREE_FREE && key.count != sizeof(uint64_t)))
        return bad(walk, "a key has the wrong length");
    if ((walk->previous.bytes && compare(walk, walk->previous, key) >= 0) ||
        (low.bytes && compare(walk, low, key) > 0) || (high.bytes && compare(walk, key, high) >= 0))
        return bad(walk, "keys are out of order");
    return true;
}

static bool check_leaf(struct walk *walk, const uint8_t *page, uint32_t count, struct span low,
                       struct span high)
{
    walk->found.leaf_pages++;
    walk->found.entries += count;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *at = page + load_u16(page + sizeof(struct page_head) + 2 * i);
        struct node_head node = node_at(at, 0);
        struct span key = {at + sizeof(node), node.key_bytes};
        const uint8_t *value = key.bytes + key.count;
        if (!check_key(walk, key, low, high))
            return false;
        walk->previous = key;
        if (walk->kind == TREE_FREE   ? !check_free_node(walk, node, key, value)
            : walk->kind == TREE_MAIN ? !check_main_node(walk, node, key, value)
                                      : !check_value_node(walk, node, key, value))
            return false;
    }
    return true;
}

static bool check_page(struct walk *walk, uint64_t number, uint32_t levels, struct span low,
                       struct span high);

/* Child i has keys from node i's key on, up to node i + 1's. The first node's key is not used. */
static bool check_branch(struct walk *walk, const uint8_t *page, uint32_t count, uint32_t levels,
                         struct span low, struct span high)
{
    walk->found.branch_pages++;
    struct span from = low;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *at = page + load_u16(page + sizeof(struct page_head) + 2 * i);
        struct node_head node = node_at(at, 0);
        uint64_t child =
            (uint64_t)node.low | (uint64_t)node.high << 16 | (uint64_t)node.flags << 32;
        struct span to = high;
        if (i + 1 < count) {
            const uint8_t *next = page + load_u16(page + sizeof(struct page_head) + 2 * (i + 1));
            to = (struct span){next + sizeof(node), node_at(next, 0).key_bytes};
            if (!check_key(walk, to, from, high))
                return false;
        }
        if (!check_page(walk, child, levels - 1, from, to))
            return false;
        from = to;
    }
    return true;
}

static bool check_page(struct walk *walk, uint64_t number, uint32_t levels, struct span low,
                       struct span high)
{
    struct page_head head;
    const uint8_t *page = take_page(walk, number, &head);
    if (!page)
        return false;
    bool is_leaf = levels == 1;
    uint32_t count = head.lower < sizeof(head) ? 0 : (head.lower - (uint32_t)sizeof(head)) / 2;
    /* LMDB asserts two children a branch page, except among the free pages. */
    uint32_t count_min = is_leaf || walk->kind == TREE_FREE ? 1 : 2;
    if (head.flags != (is_leaf ? PAGE_LEAF : PAGE_BRANCH) || head.lower % 2 || head.upper % 2 ||
        head.lower > head.upper || head.upper > walk->page_bytes || count < count_min)
        return bad(walk, "page %llu is malformed", (unsigned long long)number);
    if (!check_nodes(walk, page, &head, count, is_leaf))
        return false;
    return is_leaf ? check_leaf(walk, page, count, low, high)
                   : check_branch(walk, page, count, levels, low, high);
}

static bool check_tree(struct walk *walk, const struct tree *tree, enum tree_kind kind,
                       const char *name)
{
    walk->kind = kind;
    walk->found = (struct tree){0};
    walk->previous = (struct span){0};
    uint16_t flags = kind == TREE_FREE ? TREE_INTEGER_KEYS : 0;
    if (tree->flags != flags || tree->depth > DEPTH_MAX || (kind != TREE_FREE && tree->pad != 0) ||
        (tree->root == NO_PAGE) != (tree->depth == 0))
        return bad(walk, "the root of %s is malformed", name);
    if (tree->depth > 0) {
        const struct span none = {0};
        if (!check_page(walk, tree->root, tree->depth, none, none))
            return false;
    }
    if (walk->found.branch_pages != tree->branch_pages ||
        walk->found.leaf_pages != tree->leaf_pages ||
        walk->found.overflow_pages != tree->overflow_pages || walk->found.entries != tree->entries)
        return bad(walk, "%s has %llu entries in %llu pages, its root says %llu in %llu", name,
                   (unsigned long long)walk->found.entries,
                   (unsigned long long)walk->found.leaf_pages, (unsigned long long)tree->entries,
                   (unsigned long long)tree->leaf_pages);
    return true;
}

static bool check_meta(struct walk *walk, uint64_t file_bytes, struct meta *out)
{
    struct meta metas[2];
    for (unsigned i = 0; i < 2; i++) {
        struct page_head head;
        memcpy(&head, walk->map + i * walk->page_bytes, sizeof(head));
        memcpy(&metas[i], walk->map + i * walk->page_bytes + sizeof(head), sizeof(metas[i]));
        if (head.number != i || head.flags != PAGE_META || metas[i].magic != META_MAGIC ||
            metas[i].version != META_VERSION || metas[i].free.pad != walk->page_bytes)
            return bad(walk, "meta page %u is malformed", i);
    }
    /* Commits go to page 0 and 1 by turns, so a damaged number shows. */
    uint64_t even = metas[0].transaction, odd = metas[1].transaction;
    bool is_fresh = even == 0 && odd == 0;
    if (!is_fresh && (even % 2 != 0 || odd % 2 != 1 || (even > odd ? even - odd : odd - even) != 1))
        return bad(walk, "the meta pages have transactions %llu and %llu", (unsigned long long)even,
                   (unsigned long long)odd);
    *out = metas[odd > even];
    /* Pages at the end that a transaction took and gave back are not always written. */
    const uint64_t slack_pages = 65536;
    if (out->last_page < 1 || out->last_page > file_bytes / walk->page_bytes + slack_pages)
        return bad(walk, "the last page is %llu in a file of %llu bytes",
                   (unsigned long long)out->last_page, (unsigned long long)file_bytes);
    return true;
}

static bool check_map(struct walk *walk, uint64_t file_bytes)
{
    /* LMDB's pages are as large as those of the machine that made the file. */
    struct meta meta;
    if (file_bytes < sizeof(struct page_head) + sizeof(meta))
        return bad(walk, "the file has %llu bytes", (unsigned long long)file_bytes);
    memcpy(&meta, walk->map + sizeof(struct page_head), sizeof(meta));
    walk->page_bytes = meta.free.pad;
    if (walk->page_bytes < 512 || walk->page_bytes > 65536 ||
        (walk->page_bytes & (walk->page_bytes - 1)) || file_bytes < 2ull * walk->page_bytes)
        return bad(walk, "pages of %u bytes in a file of %llu", walk->page_bytes,
                   (unsigned long long)file_bytes);
    walk->file_pages = file_bytes / walk->page_bytes;
    if (!check_meta(walk, file_bytes, &meta))
        return false;
    walk->last_page = meta.last_page;
    walk->transaction = meta.transaction;
    walk->seen = larder_alloc_zero(walk->last_page / 8 + 1, 1);
    if (!walk->seen)
        return bad(walk, "no memory for %llu pages", (unsigned long long)walk->last_page);
    if (!check_tree(walk, &meta.free, TREE_FREE, "the free pages") ||
        !check_tree(walk, &meta.main, TREE_MAIN, "the main tree"))
        return false;
    for (int i = 0; i < INDEX_DATABASES; i++) {
        walk->database = (enum index_database)i;
        if (walk->named[i] &&
            !check_tree(walk, &walk->trees[i], TREE_VALUES, index_databases[i].name))
            return false;
    }
    return true;
}

bool index_check_image(const void *image, uint64_t image_bytes, char *reason, size_t reason_bytes)
{
    struct walk walk = {.map = image, .reason = reason, .reason_bytes = reason_bytes};
    bool is_sound = check_map(&walk, image_bytes);
    larder_free(walk.seen);
    return is_sound;
}

static bool check_fd(int fd, uint64_t file_bytes, char *reason, size_t reason_bytes)
{
    struct walk walk = {.reason = reason, .reason_bytes = reason_bytes};
    /* Populated: one sequential read, where the trees would have it read page by page. */
    void *map = mmap(NULL, file_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (map == MAP_FAILED)
        return bad(&walk, "mmap of %llu bytes: %s", (unsigned long long)file_bytes,
                   strerror(errno));
    bool is_sound = index_check_image(map, file_bytes, reason, reason_bytes);
    munmap(map, file_bytes);
    return is_sound;
}

/* In the child: nothing here may take a lock that another thread of the parent held. */
static void run_child(int fd, uint64_t file_bytes, int reason_fd)
{
    /* It must not outlive the daemon: it holds the store's lock. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 0);
    signal(SIGBUS, SIG_DFL);
    signal(SIGSEGV, SIG_DFL);
    char reason[200] = "";
    bool is_sound = check_fd(fd, file_bytes, reason, sizeof(reason));
    if (!is_sound && write(reason_fd, reason, strlen(reason)) < 0)
        _exit(2);
    _exit(is_sound ? 0 : 1);
}

static int wait_for_child(pid_t child, int reason_fd)
{
    char reason[200] = "";
    size_t have = 0;
    ssize_t got;
    while (have < sizeof(reason) - 1) {
        got = read(reason_fd, reason + have, sizeof(reason) - 1 - have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        have += (size_t)got;
    }
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return larder_fail(-errno, "cannot wait for the check of the index: %s",
                               larder_error_text(-errno));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFSIGNALED(status))
        return larder_fail(LARDER_ECORRUPT, "index: its check died of signal %d (%s)",
                           WTERMSIG(status), strsignal(WTERMSIG(status)));
    return larder_fail(LARDER_ECORRUPT, "index: %s", reason[0] ? reason : "its check failed");
}

int index_check_file(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return larder_fail(-errno, "cannot open %s: %s", path, larder_error_text(-errno));
    int err = 0;
    struct stat st;
    int pipe_fds[2];
    if (fstat(fd, &st) != 0) {
        err = larder_fail(-errno, "cannot stat %s: %s", path, larder_error_text(-errno));
        goto close_fd;
    }
    if (st.st_size == 0) {
        err = larder_fail(-ENOENT, "%s is empty", path);
        goto close_fd;
    }
    if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
        err = larder_fail(-errno, "pipe: %s", larder_error_text(-errno));
        goto close_fd;
    }
    pid_t child = fork();
    if (child == 0)
        run_child(fd, (uint64_t)st.st_size, pipe_fds[1]);
    int fork_errno = errno;
    close(pipe_fds[1]);
    if (child > 0) {
        err = wait_for_child(child, pipe_fds[0]);
    } else {
        /* Where no process may be made, the walk alone still guards against all but a file that
         * changes under it. */
        larder_log(LARDER_LOG_WARN,
                   "storage: the index is checked without a process of its own: %s",
                   larder_error_text(-fork_errno));
        char reason[200] = "";
        if (!check_fd(fd, (uint64_t)st.st_size, reason, sizeof(reason)))
            err = larder_fail(LARDER_ECORRUPT, "index: %s", reason);
    }
    close(pipe_fds[0]);
close_fd:
    close(fd);
    return err;
}
