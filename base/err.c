#include "base/err.h"

#include "base/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A message that was cut must still be valid UTF-8: it ends up in JSON. */
static void drop_partial_char(char *s)
{
    size_t n = strlen(s), i = n;
    while (i > 0 && n - i < 4 && ((unsigned char)s[i - 1] & 0xC0) == 0x80)
        i--;
    if (i == 0)
        return;
    unsigned char lead = (unsigned char)s[i - 1];
    size_t want = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    if (n - (i - 1) < want)
        s[i - 1] = 0;
}

/* Messages quote files and requests: what is not text, or would steer a terminal, is shown as '?'. */
static void keep_text(char *s)
{
    for (size_t n = strlen(s); n > 0;) {
        uint32_t cp;
        int k = utf8_decode(s, n, &cp);
        bool good = k > 0 && cp >= 0x20 && !(cp >= 0x7F && cp < 0xA0);
        size_t step = good ? (size_t)k : 1;
        if (!good)
            *s = '?';
        s += step;
        n -= step;
    }
}

bool err_set(struct err *err, enum err_code code, const char *fmt, ...)
{
    if (err == NULL)
        return false;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    if (n >= (int)sizeof err->msg)
        drop_partial_char(err->msg);
    keep_text(err->msg);
    err->code = code;
    return false;
}

bool err_prefix(struct err *err, const char *fmt, ...)
{
    if (err == NULL)
        return false;
    char old[sizeof err->msg];
    memcpy(old, err->msg, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    if (n >= 0 && n < (int)sizeof err->msg)
        snprintf(err->msg + n, sizeof err->msg - (size_t)n, ": %s", old);
    if (strlen(err->msg) == sizeof err->msg - 1)
        drop_partial_char(err->msg);
    keep_text(err->msg);
    return false;
}
