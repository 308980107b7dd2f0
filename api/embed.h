/* Files that travel inside the program: bytes from name to name_end. */
#ifndef API_EMBED_H
#define API_EMBED_H

extern const char embed_openapi[], embed_openapi_end[];    /* openapi.yaml */
extern const char embed_page[], embed_page_end[];          /* api/page.html */

#endif
