#include "api/json.h"

#include "base/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_REPORTED = 64, MAX_IN_MESSAGE = 5, MAX_OVERFLOWS = 32, FIELD_CUT = 128 };

/* Commas and opening brackets outside strings: at least the number of values. */
static size_t count_values(const char *s, size_t n)
{
    size_t count = 1;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == ',' || c == '[' || c == '{') {
            count++;
        }
    }
    return count;
}

/* Rewrites the number that ends at `end`, too large for its type, as one that parses: an integer as its first 15 digits,
 * so that a message names the value, the rest as 9e307. false when there is no room for it. */
static bool shrink_number(char *text, size_t end)
{
    size_t i = end;
    while (i > 0 && strchr("0123456789+-.eE", text[i - 1]) != NULL && text[i - 1] != 0)
        i--;
    const char *sign = i < end && text[i] == '-' ? "-" : "";
    const char *digits = text + i + strlen(sign);
    size_t n_digits = end - i - strlen(sign);
    char repl[32];
    int len;
    if (n_digits >= 19 && n_digits <= 308 && strspn(digits, "0123456789") >= n_digits)
        len = snprintf(repl, sizeof repl, "%s%c.%.14se%zu", sign, digits[0], digits + 1, n_digits - 1);
    else
        len = snprintf(repl, sizeof repl, "%s9e307", sign);
    if (end - i < (size_t)len)
        return false;
    memcpy(text + i, repl, (size_t)len);
    memset(text + i + len, ' ', end - i - (size_t)len);
    return true;
}

json_t *json_read(char *text, size_t n, struct err *err)
{
    if (count_values(text, n) > JSON_MAX_VALUES) {
        err_set(err, ERR_INVALID, "the body holds more than %d JSON values", JSON_MAX_VALUES);
        return NULL;
    }
    json_error_t e;
    for (int tries = 0;; tries++) {
        json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
        if (root != NULL && json_is_object(root))
            return root;
        if (root != NULL) {
            json_decref(root);
            err_set(err, ERR_INVALID, "line 1, column 1: an array, expected an object");
            return NULL;
        }
        if (json_error_code(&e) != json_error_numeric_overflow || tries == MAX_OVERFLOWS ||
            e.position <= 0 || (size_t)e.position > n || !shrink_number(text, (size_t)e.position))
            break;
    }
    if (n == 0)
        err_set(err, ERR_INVALID, "the body is empty, expected a JSON object (line 1, column 1)");
    else
        err_set(err, ERR_INVALID, "line %d, column %d: %s", e.line, e.column, e.text);
    return NULL;
}

void json_text(struct buf *b, const char *s, size_t n, size_t max)
{
    struct buf clean = {0};
    uint32_t cp;
    for (size_t i = 0; i < n && clean.len + 4 <= max;) {
        int len = utf8_decode(s + i, n - i, &cp);
        if (len > 0)
            buf_add(&clean, s + i, (size_t)len);
        else
            buf_puts(&clean, "\xEF\xBF\xBD");
        i += len > 0 ? (size_t)len : 1;
    }
    buf_json_string(b, clean.len ? clean.data : "", clean.len);
    b->failed |= clean.failed;
    buf_free(&clean);
}

void violations_add(struct violations *v, const char *field, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (v->n++ >= MAX_REPORTED)
        return;
    buf_puts(&v->details, v->n > 1 ? ",{\"field\":" : "{\"field\":");
    json_text(&v->details, field, strlen(field), FIELD_CUT);
    buf_puts(&v->details, ",\"message\":");
    json_text(&v->details, text, strlen(text), sizeof text);
    buf_puts(&v->details, "}");
    if (v->n <= MAX_IN_MESSAGE)
        buf_printf(&v->message, "%s%.*s: %s", v->n > 1 ? "; " : "", FIELD_CUT, field, text);
    else if (v->n == MAX_IN_MESSAGE + 1)
        buf_puts(&v->message, "; and more, see details");
}

void violations_free(struct violations *v)
{
    buf_free(&v->details);
    buf_free(&v->message);
    v->n = 0;
}
