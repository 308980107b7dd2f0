/* What tests set of the emulated card; for a whole program, the environment does: EMU_CARD="fail_launch=500,managed=1". */
#ifndef TESTS_EMU_EMU_H
#define TESTS_EMU_EMU_H

#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct emu_card {
    int n_devices;          /* 1 */
    int probe;              /* the cudaError_t that cudaGetDeviceCount answers */
    int driver;             /* 13000; 0 = none */
    int capability;         /* 90 */
    int code;               /* the cudaError_t that asking for a kernel's attributes answers */
    int n_sm;               /* 4 */
    int shared;             /* bytes of shared memory that a block can have: 99 KB */
    size_t memory;          /* bytes in all */
    uint64_t seed;          /* of the order in which lanes run */
    int64_t fail_launch;    /* the n-th launch from now fails; 0: none */
    int64_t fail_call;      /* the n-th call (launches aside) that can fail does */
    bool managed;           /* memory is said to be managed, not the device's */
    int together;           /* 4: blocks of a cooperative launch that it holds (it says one a multiprocessor); 0: no such launches */
};

struct emu_card *emu_card(void);
size_t emu_taken(void);     /* device bytes allocated now */
long emu_alive(void);       /* allocations, pinned ones too, streams, events and graphs that nobody gave back */
long emu_launches(void);    /* launches so far */

#ifdef __cplusplus
}
#endif

#endif
