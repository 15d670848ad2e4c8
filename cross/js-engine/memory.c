/* The allocator, and the functions of a C library that need a system.
 *
 * A message ends with its instance, so memory is never given back to the host and free blocks are never joined. What counts is
 * the number of pages that a message writes: after freeze_memory() no block of the frozen image is used again, and new ones
 * begin on a page of their own. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include "memory.h"

#define WASM_PAGE 65536u
#define FROZEN_PAGE 4096u
#define SMALL 1024u
#define SMALL_CLASSES (SMALL / 16)
/* Four sizes per power of two, from 1 KiB to 64 MiB. */
#define CLASSES (SMALL_CLASSES + 16 * 4)

extern unsigned char __heap_base;

typedef struct Block {
    uint32_t size;
    uint32_t class;
} Block;

typedef struct FreeBlock {
    struct FreeBlock *next;
} FreeBlock;

static uintptr_t unused;
static uintptr_t end;
static FreeBlock *freed[CLASSES];
static uint64_t now_ms;

/* Rounds a size up to that of its class. Returns the class, or CLASSES if the size is beyond all of them. */
static uint32_t class_of(size_t size, uint32_t *rounded) {
    if (size <= SMALL) {
        uint32_t class = size == 0 ? 0 : (uint32_t)(size - 1) / 16;
        *rounded = (class + 1) * 16;
        return class;
    }
    uint32_t power = 31 - (uint32_t)__builtin_clz((uint32_t)size - 1);
    if (power >= 26) return CLASSES;
    uint32_t step = ((uint32_t)size - 1) >> (power - 2) & 3;
    *rounded = (5 + step) << (power - 2);
    return SMALL_CLASSES + (power - 10) * 4 + step;
}

static int extend(size_t bytes) {
    if (unused == 0) {
        unused = ((uintptr_t)&__heap_base + 15) & ~(uintptr_t)15;
        end = __builtin_wasm_memory_size(0) * WASM_PAGE;
    }
    if (bytes <= end - unused) return 1;
    size_t pages = (bytes - (end - unused) + WASM_PAGE - 1) / WASM_PAGE;
    if (__builtin_wasm_memory_grow(0, pages) == (size_t)-1) return 0;
    end += pages * WASM_PAGE;
    return 1;
}

void *malloc(size_t size) {
    uint32_t rounded, class = class_of(size, &rounded);
    if (class == CLASSES) return NULL;
    if (freed[class]) {
        FreeBlock *block = freed[class];
        freed[class] = block->next;
        return block;
    }
    if (!extend(rounded + sizeof(Block))) return NULL;
    Block *block = (Block *)unused;
    unused += rounded + sizeof(Block);
    *block = (Block){ rounded, class };
    return block + 1;
}

void free(void *memory) {
    if (!memory) return;
    Block *block = (Block *)memory - 1;
    if ((uintptr_t)memory + block->size == unused) {
        unused = (uintptr_t)block;
        return;
    }
    FreeBlock *free_block = memory;
    free_block->next = freed[block->class];
    freed[block->class] = free_block;
}

void *calloc(size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) return NULL;
    void *memory = malloc(bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

size_t malloc_usable_size(void *memory) {
    return memory ? ((Block *)memory - 1)->size : 0;
}

void *realloc(void *memory, size_t size) {
    if (!memory) return malloc(size);
    Block *block = (Block *)memory - 1;
    if (size <= block->size) return memory;
    if ((uintptr_t)memory + block->size == unused) {
        uint32_t rounded, class = class_of(size, &rounded);
        if (class == CLASSES || !extend(rounded - block->size)) return NULL;
        unused += rounded - block->size;
        *block = (Block){ rounded, class };
        return memory;
    }
    void *moved = malloc(size);
    if (!moved) return NULL;
    memcpy(moved, memory, block->size);
    free(memory);
    return moved;
}

/* Zeroes what is free: the host copies pages that are not zero for each message. */
static void forget_free_memory(void) {
    for (uint32_t class = 0; class < CLASSES; class++) {
        for (FreeBlock *block = freed[class], *next; block; block = next) {
            next = block->next;
            memset(block, 0, ((Block *)block - 1)->size);
        }
    }
    memset((void *)unused, 0, end - unused);
    memset(freed, 0, sizeof freed);
}

void freeze_memory(void) {
    forget_free_memory();
    unused = (unused + FROZEN_PAGE - 1) & ~(uintptr_t)(FROZEN_PAGE - 1);
    if (unused > end) {
        uintptr_t beyond = unused - end;
        unused = end;
        if (extend(beyond)) unused += beyond;
    }
}

/* The clock stands at the time of the message: the same message has the same outcome. */
void set_clock(uint64_t ms) {
    now_ms = ms;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    time->tv_sec = (time_t)(now_ms / 1000);
    time->tv_usec = (suseconds_t)(now_ms % 1000 * 1000);
    return 0;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    (void)clock;
    time->tv_sec = (time_t)(now_ms / 1000);
    time->tv_nsec = (long)(now_ms % 1000 * 1000000);
    return 0;
}

/* UTC everywhere. QuickJS reads the difference to it and nothing else. */
struct tm *localtime_r(const time_t *restrict time, struct tm *restrict parts) {
    (void)time;
    memset(parts, 0, sizeof *parts);
    return parts;
}

/* QuickJS prints only in its debugging functions. */
int printf(const char *restrict format, ...) { (void)format; return 0; }
int fprintf(FILE *restrict file, const char *restrict format, ...) { (void)file; (void)format; return 0; }
int putchar(int c) { return c; }
int puts(const char *text) { (void)text; return 0; }
int fputc(int c, FILE *file) { (void)file; return c; }
int fputs(const char *restrict text, FILE *restrict file) { (void)text; (void)file; return 0; }
int fflush(FILE *file) { (void)file; return 0; }

/* What remains of files in the C library. 8 is `badf`. */
int32_t __imported_wasi_snapshot_preview1_fd_close(int32_t file) { (void)file; return 8; }
int32_t __imported_wasi_snapshot_preview1_fd_seek(int32_t file, int64_t by, int32_t from, int32_t at) {
    (void)file; (void)by; (void)from; (void)at;
    return 8;
}
int32_t __imported_wasi_snapshot_preview1_fd_write(int32_t file, int32_t parts, int32_t count, int32_t written) {
    (void)file; (void)parts; (void)count; (void)written;
    return 8;
}

_Noreturn void abort(void) { __builtin_trap(); }
_Noreturn void __assert_fail(const char *what, const char *file, int line, const char *function) {
    (void)what; (void)file; (void)line; (void)function;
    __builtin_trap();
}
