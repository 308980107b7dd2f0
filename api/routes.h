/* The table of endpoints. */
#ifndef API_ROUTES_H
#define API_ROUTES_H

#include "api/reply.h"

struct req;

struct route {
    const char *path;
    const char *method;    /* GET implies HEAD */
    bool json;             /* takes a JSON body */
    /* Called when the request is complete, and again each time its connection was resumed. */
    enum MHD_Result (*handle)(struct req *r);
};

extern const struct route routes[];
extern const size_t n_routes;

/* The route of a raw path, which must be literally one of ours. NULL with r filled: 404, 405 with Allow, or 501. */
const struct route *route_find(const char *path, const char *method, struct reply *r);

/* Handlers, by file. */
enum MHD_Result status_health(struct req *r);
enum MHD_Result status_live(struct req *r);
enum MHD_Result status_ready(struct req *r);
enum MHD_Result status_metrics(struct req *r);
enum MHD_Result status_info(struct req *r);
enum MHD_Result status_openapi(struct req *r);
enum MHD_Result status_page(struct req *r);
enum MHD_Result status_shutdown(struct req *r);
enum MHD_Result execute_handle(struct req *r);
enum MHD_Result execute_cancel(struct req *r);

/* For handlers: sends r's answer; a draining worker closes the connection after it. */
enum MHD_Result req_send(struct req *r, struct reply *reply);
enum MHD_Result req_error(struct req *r, const struct err *err, const struct violations *v);

#endif
