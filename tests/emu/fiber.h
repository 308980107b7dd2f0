/* A fiber: a stack of its own and a switch of a few instructions (swapcontext makes a system call each time). */
#ifndef TESTS_EMU_FIBER_H
#define TESTS_EMU_FIBER_H

#include <stddef.h>

struct fiber {
    void *sp;       /* where its registers lie while it does not run */
    char *stack;    /* FIBER_STACK bytes above a page that faults; kept for the next use */
};

void fiber_start(struct fiber *f, void (*entry)(void));  /* entry never returns: it switches away for ever */
void fiber_switch(struct fiber *from, struct fiber *to);
void fiber_free(struct fiber *f);

#endif
