/* Time: monotonic for every duration and deadline, wall clock only for time stamps. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

uint64_t clock_ns(void);                       /* monotonic nanoseconds */
double clock_ms_since(uint64_t start_ns);
void clock_rfc3339(char *out, size_t size);    /* now, UTC, milliseconds: 2026-11-24T08:15:38.123Z; size >= 25 */

#endif
