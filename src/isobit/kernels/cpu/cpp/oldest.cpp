// Functions that newer C libraries have under a newer name as well: this library asks for the old one, so that what is built
// here runs on older systems too (glibc 2.34 moved POSIX threads into libc.so and gave them new versions; the old ones stay).
// The linker sends every call to the __wrap_ function (build.py, PORTABLE_LINK), those of the C++ library inside too.

#include <pthread.h>

#if defined(__GLIBC__) && defined(__x86_64__)
#define ISOBIT_OLDEST "GLIBC_2.2.5"
#elif defined(__GLIBC__) && defined(__aarch64__)
#define ISOBIT_OLDEST "GLIBC_2.17"
#endif

#ifdef ISOBIT_OLDEST
#define ISOBIT_OLD(name) isobit_old_##name
#define ISOBIT_VERSION(name) __asm__(".symver isobit_old_" #name "," #name "@" ISOBIT_OLDEST)
#else
#define ISOBIT_OLD(name) __real_##name  // the linker's word for the function itself
#define ISOBIT_VERSION(name) static_assert(true)
#endif

extern "C" {

int ISOBIT_OLD(pthread_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int ISOBIT_OLD(pthread_join)(pthread_t, void **);
int ISOBIT_OLD(pthread_once)(pthread_once_t *, void (*)());
int ISOBIT_OLD(pthread_mutex_trylock)(pthread_mutex_t *);
int ISOBIT_OLD(__pthread_key_create)(pthread_key_t *, void (*)(void *));
ISOBIT_VERSION(pthread_create);
ISOBIT_VERSION(pthread_join);
ISOBIT_VERSION(pthread_once);
ISOBIT_VERSION(pthread_mutex_trylock);
ISOBIT_VERSION(__pthread_key_create);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    return ISOBIT_OLD(pthread_create)(thread, attributes, start, argument);
}
int __wrap_pthread_join(pthread_t thread, void **result) { return ISOBIT_OLD(pthread_join)(thread, result); }
int __wrap_pthread_once(pthread_once_t *done, void (*start)()) { return ISOBIT_OLD(pthread_once)(done, start); }
int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex) { return ISOBIT_OLD(pthread_mutex_trylock)(mutex); }
int __wrap___pthread_key_create(pthread_key_t *key, void (*end)(void *)) {
    return ISOBIT_OLD(__pthread_key_create)(key, end);
}

#ifdef ISOBIT_OLDEST
// Since glibc 2.32 the C++ library asks whether the process has one thread and then counts references without locks. Here:
// never, which is always right.
extern char __libc_single_threaded;
char __libc_single_threaded = 0;
#endif
}
