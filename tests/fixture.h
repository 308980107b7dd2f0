/* A folder with two model files, made once per test program: a tiny one that loads and answers at once, and a slow one whose
 * loading and decoding last long enough to be caught in the act. */
#ifndef TESTS_FIXTURE_H
#define TESTS_FIXTURE_H

extern char fixture_dir[64];
extern char fixture_tiny[96], fixture_slow[96];

void fixture_open(void);     /* ends the program when it cannot */
void fixture_close(void);    /* removes the folder and all files in it */

#endif
