/* The table of options, for cli.c and the tests that try every row's limits. */
#ifndef DAEMON_CLI_TABLE_H
#define DAEMON_CLI_TABLE_H

#include "daemon/cli.h"

enum option_type { OPTION_FLAG, OPTION_INT, OPTION_CHOICE, OPTION_TEXT };

struct option_row {
    const char *name;           /* without dashes */
    enum option_type type;
    size_t offset;              /* in struct options: int64_t, or const char * for OPTION_TEXT */
    int64_t min, max;           /* OPTION_INT: of the value; OPTION_TEXT: of its length in bytes */
    int64_t preset;
    const char *preset_text;    /* OPTION_TEXT's default */
    const char *choices;        /* OPTION_CHOICE: "a|b|c", in the order of the enum */
    const char *(*problem)(const char *value);    /* OPTION_TEXT: what is allowed, or NULL when value is fine */
    const char *arg, *help;     /* for --help; the default is printed after help when help_default is NULL */
    const char *help_default;
};

extern const struct option_row option_table[];
extern const size_t option_count;

#endif
