#include "api/guard.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

/* RFC 9110 token. A name that is none ("Transfer-Encoding ") means one thing here and another to a proxy. */
static bool is_token(const char *s, size_t n)
{
    static const char marks[] = "!#$%&'*+-.^_`|~";
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == 0 || c >= 0x80 || (!isalnum(c) && strchr(marks, c) == NULL))
            return false;
    }
    return n > 0;
}

static uint64_t parse_length(const char *s)
{
    uint64_t n = 0;
    for (; *s >= '0' && *s <= '9'; s++)
        n = n > UINT64_MAX / 10 - 1 ? UINT64_MAX / 10 : n * 10 + (uint64_t)(*s - '0');
    return n;
}

static enum MHD_Result see_header(void *cls, enum MHD_ValueKind kind, const char *name, size_t name_len,
                                  const char *value, size_t value_len)
{
    struct guard *g = cls;
    (void)kind;
    (void)value_len;
    if (!is_token(name, name_len)) {
        g->bad_name = true;
        return MHD_YES;
    }
    if (value == NULL)
        value = "";
    if (strcasecmp(name, "Host") == 0) {
        g->n_host++;
    } else if (strcasecmp(name, "Content-Length") == 0) {
        g->n_length++;
        g->content_length = parse_length(value);
    } else if (strcasecmp(name, "Transfer-Encoding") == 0) {
        g->n_encoding++;
        g->transfer_encoding = value;
    } else if (strcasecmp(name, "Content-Type") == 0) {
        g->n_type++;
        g->content_type = value;
    } else if (strcasecmp(name, "Authorization") == 0) {
        g->n_auth++;
    } else if (strcasecmp(name, "Content-Encoding") == 0) {
        g->content_encoding = value;
    }
    return MHD_YES;
}

/* ---- the checks: true = refuse ---- */

static bool bad_name(const struct guard *g)
{
    return g->bad_name;
}

static bool bad_host(const struct guard *g)
{
    return g->n_host > 1 || (g->n_host == 0 && strcmp(g->version, "HTTP/1.0") != 0);
}

static bool encoded_nul(const struct guard *g)
{
    return strstr(g->url, "%00") != NULL;
}

static bool two_framings(const struct guard *g)
{
    return g->n_length > 1 || g->n_encoding > 1 || (g->n_length > 0 && g->n_encoding > 0) ||
           (g->n_encoding > 0 && strcmp(g->version, "HTTP/1.0") == 0);
}

static bool unknown_encoding(const struct guard *g)
{
    return g->n_encoding > 0 && strcasecmp(g->transfer_encoding, "chunked") != 0;
}

static bool doubled(const struct guard *g)
{
    return g->n_type > 1 || g->n_auth > 1;
}

static bool too_large(const struct guard *g)
{
    return g->content_length > g->max_body;
}

static bool encoded_content(const struct guard *g)
{
    return g->content_encoding != NULL && strcasecmp(g->content_encoding, "identity") != 0;
}

/* application/json in any case, and no charset but UTF-8; other parameters change nothing. */
static bool other_type(const struct guard *g)
{
    static const char json[] = "application/json";
    if (g->route == NULL || !g->route->json || !g->has_body)
        return false;
    const char *s = g->content_type;
    if (s == NULL || strncasecmp(s, json, sizeof json - 1) != 0)
        return true;
    s += sizeof json - 1;
    while (*s != 0) {
        s += strspn(s, " \t");
        if (*s == 0)
            return false;
        if (*s != ';')
            return true;
        s++;
        s += strspn(s, " \t");
        size_t n = strcspn(s, ";");
        if (n >= 8 && strncasecmp(s, "charset=", 8) == 0) {
            const char *v = s + 8;
            size_t quote = *v == '"';
            if (strncasecmp(v + quote, "utf-8", 5) != 0 || (quote && v[6] != '"'))
                return true;
            v += 5 + 2 * quote;
            v += strspn(v, " \t");
            if (*v != 0 && *v != ';')
                return true;
        }
        s += n;
    }
    return false;
}

static const struct {
    bool (*refuses)(const struct guard *g);
    unsigned status;
    const char *code, *message;
} checks[] = {
    {bad_name, 400, "INVALID_REQUEST", "a header name holds a character that is not allowed"},
    {two_framings, 400, "INVALID_REQUEST", "the length of the body is given more than once"},
    {unknown_encoding, 501, "NOT_IMPLEMENTED", "Transfer-Encoding: only chunked is supported"},
    {bad_host, 400, "INVALID_REQUEST", "exactly one Host header is required"},
    {encoded_nul, 400, "INVALID_REQUEST", "the path holds an encoded NUL"},
    {doubled, 400, "INVALID_REQUEST", "Content-Type or Authorization is given twice"},
    {too_large, 413, "PAYLOAD_TOO_LARGE", "the body is larger than this worker accepts"},
    {encoded_content, 415, "UNSUPPORTED_MEDIA_TYPE", "Content-Encoding: only identity is supported"},
    {other_type, 415, "UNSUPPORTED_MEDIA_TYPE", "Content-Type must be application/json, in UTF-8"},
};

bool guard_check(struct guard *g, struct reply *r)
{
    MHD_get_connection_values_n(g->mhd, MHD_HEADER_KIND, see_header, g);
    g->has_body = g->content_length > 0 || g->n_encoding > 0;
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        if (checks[i].refuses(g)) {
            reply_problem(r, checks[i].status, checks[i].code, checks[i].message);
            r->close = true;
            return false;
        }
    }
    return true;
}
