/* Requests and expected answers as data: tests/http/NAME.case.
 *
 *   # a comment
 *   == title of a case
 *   > a line that is sent, with CRLF
 *   >| bytes that are sent as they are
 *   = {"job_id":"a"}              the whole POST /execute around this body
 *   < 400|501 INVALID_REQUEST     an answer with one of these statuses (0 = closed without one), and this error code
 *   < body text                   what its body holds, "no body text" what not; "empty" that there is none
 *   < header Allow: POST          a header it has, "no header NAME" one it has not
 *   < times 500                   so many answers like this one
 *   < close                       the connection ends after it, and nothing more comes
 *
 * In sent lines {{ff 0d}} stands for these bytes, {{40000*a}} for that many of the text. The expectations after a status belong to
 * it; several statuses are answers in order. HEAD answers have no body: the first sent line tells. A status of 400 and more with
 * a code must be JSON with exactly that error object; without a code only the status counts. */
#ifndef TESTS_CASE_H
#define TESTS_CASE_H

#include "base/buf.h"

/* Calls after(arg, title) when a case has passed. Returns how many were run; the first failure is described in `problem` and ends
 * the run. */
int case_run(const char *path, int port, void (*after)(void *arg, const char *title), void *arg, struct buf *problem);

#endif
