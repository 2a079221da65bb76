// How the kernel of a file that is compiled for a processor is started: it is included behind that. Arguments are where
// pointers are, as CUDA's driver takes them.
template <typename... T, size_t... I>
void lb_start(void (*kernel)(T...), void **arguments, int clusters, int size, int threads, int shared,
              std::index_sequence<I...>) {
    lb_run([&] { kernel(*static_cast<T *>(arguments[I])...); }, clusters, size, threads, THREADS, shared);
}
template <typename... T>
void lb_start(void (*kernel)(T...), void **arguments, int clusters, int size, int threads, int shared) {
    lb_start(kernel, arguments, clusters, size, threads, shared, std::index_sequence_for<T...>());
}

extern "C" void run(void **arguments, int blocks, int size, int threads, int shared) {
#ifdef LAYERS
    lb_start(lowbit_step, arguments, blocks / size, size, threads, shared);
#elif defined(OWN_SPAN)
    lb_start(lowbit_product, arguments, blocks / size, size, threads, shared);
#else
    lb_start(lowbit_attention, arguments, blocks / size, size, threads, shared);
#endif
}
