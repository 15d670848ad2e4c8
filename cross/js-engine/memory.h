#ifndef MEMORY_H
#define MEMORY_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* Ends the part of the memory that is frozen: nothing is allocated below what is allocated now. */
void freeze_memory(void);
/* Sets the time that the clock shows. */
void set_clock(uint64_t ms);
size_t malloc_usable_size(void *memory);

#endif
