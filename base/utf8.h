/* UTF-8 (RFC 3629: no surrogates, no overlong forms, at most U+10FFFF). */
#ifndef BASE_UTF8_H
#define BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Decodes one character of s[0..n). Returns its length 1..4 and sets *cp; 0 when s begins with bytes that can never
 * become one; -1 when they are a valid beginning that needs more bytes. */
int utf8_decode(const char *s, size_t n, uint32_t *cp);
int utf8_encode(uint32_t cp, char out[4]);             /* returns the length */
bool utf8_valid(const char *s, size_t n);

/* Length of the longest prefix of s[0..n) that does not end inside a character that may still be completed.
 * Invalid bytes count as complete. */
size_t utf8_complete(const char *s, size_t n);

#endif
