/* What /execute answers: the event stream and the collected object; and the books that are closed with it. */
#ifndef API_ANSWER_H
#define API_ANSWER_H

#include "api/job.h"
#include "api/reply.h"

/* Queues the event stream of a running job. */
enum MHD_Result answer_stream(struct job *j, struct MHD_Connection *mhd);

/* Reads what there is; true when the answer is complete and in r. */
bool answer_collect(struct job *j, struct reply *r);

/* Counts and logs the end of a job once, and frees its job_id. j may be NULL (refused before it was one). */
void answer_account(struct job *j, struct api *a, enum job_outcome outcome);

#endif
