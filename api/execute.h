/* POST /execute and POST /cancel. */
#ifndef API_EXECUTE_H
#define API_EXECUTE_H

struct job;

/* Parses, tokenises and submits a job; ends it as refused or running. Any thread; takes as long as the body needs. */
void execute_prepare(struct job *j);

#endif
