#include "api/embed.h"

/* The assembler copies the files; the Makefile names them as this object's dependencies. */
#define EMBED(name, file)                                                                          \
    __asm__(".section .rodata\n.global " name "\n.global " name "_end\n.hidden " name "\n"         \
            ".hidden " name "_end\n" name ":\n.incbin \"" file "\"\n" name "_end:\n.byte 0\n"     \
            ".previous\n")

EMBED("embed_openapi", "openapi.yaml");
EMBED("embed_page", "api/page.html");
