/* What tests set of the emulated card. */
#ifndef TESTS_EMU_EMU_H
#define TESTS_EMU_EMU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct emu_card {
    int n_devices;          /* 1 */
    int probe;              /* the cudaError_t that cudaGetDeviceCount answers */
    int driver;             /* 13000; 0 = none */
    int capability;         /* 90 */
    size_t memory;          /* bytes in all */
    uint64_t seed;          /* of the order in which lanes run */
    int64_t fail_launch;    /* the n-th launch from now fails; 0: none */
};

struct emu_card *emu_card(void);
size_t emu_taken(void);     /* device bytes allocated now */
long emu_launches(void);    /* launches so far */

#ifdef __cplusplus
}
#endif

#endif
