#include "api/routes.h"

#include <string.h>

const struct route routes[] = {
    {"/", "GET", false, status_page},
    {"/cancel", "POST", true, execute_cancel},
    {"/execute", "POST", true, execute_handle},
    {"/health", "GET", false, status_health},
    {"/health/live", "GET", false, status_live},
    {"/health/ready", "GET", false, status_ready},
    {"/info", "GET", false, status_info},
    {"/metrics", "GET", false, status_metrics},
    {"/openapi.yaml", "GET", false, status_openapi},
    {"/shutdown", "POST", false, status_shutdown},
};
const size_t n_routes = sizeof routes / sizeof *routes;

static bool known_to_http(const char *method)
{
    static const char *const methods[] = {"GET",     "HEAD",    "POST",  "PUT",  "DELETE",
                                          "CONNECT", "OPTIONS", "TRACE", "PATCH"};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (strcmp(method, methods[i]) == 0)
            return true;
    return false;
}

const struct route *route_find(const char *path, const char *method, struct reply *r)
{
    bool head = strcmp(method, "HEAD") == 0;
    const char *allow = NULL;
    for (size_t i = 0; i < n_routes; i++) {
        if (strcmp(path, routes[i].path) != 0)
            continue;
        if (strcmp(head ? "GET" : method, routes[i].method) == 0)
            return &routes[i];
        allow = routes[i].method[0] == 'G' ? "GET, HEAD" : "POST";
    }
    bool usual = head || strcmp(method, "GET") == 0 || strcmp(method, "POST") == 0;
    if (!known_to_http(method)) {
        reply_problem(r, 501, "NOT_IMPLEMENTED", "unknown method");
    } else if (allow != NULL || !usual) {
        reply_problem(r, 405, "METHOD_NOT_ALLOWED", "this method is not allowed here, see Allow");
        r->allow = allow ? allow : "GET, HEAD, POST";
    } else {
        reply_problem(r, 404, "NOT_FOUND", "no such endpoint");
    }
    return NULL;
}
