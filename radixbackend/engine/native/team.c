/* A team of threads that does nothing; what for is said in contention.py. */

#include <omp.h>

/* So many threads exist, asleep after a moment, until the thread that called this ends. */
void radix_team(int threads) {
#pragma omp parallel num_threads(threads)
    omp_get_thread_num();
}

/* That OpenMP thinks it may use. */
int radix_processors(void) { return omp_get_num_procs(); }
