#include "tests/emu/fiber.h"

#include <sys/mman.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { FIBER_STACK = 64 * 1024, GUARD = 4096 };

extern "C" void emu_fiber_switch(void **from, void *to);

#if defined(__x86_64__)
/* Saves what a called function must keep, exchanges stacks, restores. */
asm(".text\n"
    ".globl emu_fiber_switch\n"
    ".type emu_fiber_switch, @function\n"
    "emu_fiber_switch:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
    "    ret\n");
enum { SAVED = 6 };
#else
#error "the CUDA shim's fibers are written for x86-64"
#endif

void fiber_start(struct fiber *f, void (*entry)(void))
{
    if (f->stack == NULL) {
        void *p = mmap(NULL, FIBER_STACK + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || mprotect(p, GUARD, PROT_NONE) != 0) {
            perror("emu: fiber stack");
            exit(1);
        }
        f->stack = (char *)p + GUARD;
    }
    /* As if entry had been called: the stack is 8 off a multiple of 16 when it begins. */
    void **top = (void **)(f->stack + FIBER_STACK) - 2;
    *top = (void *)entry;
    top -= SAVED;
    for (int i = 0; i < SAVED; i++)
        top[i] = NULL;
    f->sp = top;
}

void fiber_switch(struct fiber *from, struct fiber *to)
{
    emu_fiber_switch(&from->sp, to->sp);
}

void fiber_free(struct fiber *f)
{
    if (f->stack != NULL)
        munmap(f->stack - GUARD, FIBER_STACK + GUARD);
    f->stack = NULL;
}
